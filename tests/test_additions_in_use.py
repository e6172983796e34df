"""What papers add to designs, in use: fitted, saved, loaded, predicted from the command line and exported."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from vlprompt import FrozenCLIP, PromptClassifier, VlpromptError, load_clip, load_learner
from vlprompt.cli.__main__ import main
from vlprompt.saving.export import ONNX_TORCH, export_learner

COLOURS = {"green": (30, 200, 40), "red": (220, 20, 30), "yellow": (230, 220, 30)}
WORDS = {"attributes": ["color", "shape"], "n_ctx": 2}
USUAL: list[tuple[str, dict[str, Any]]] = [
    ("promptkd", {"depth": 2}),
    ("coop", {"head": "dept", "n_ctx": 2}),
    ("maple", WORDS | {"depth": 2, "ctx_init": None}),
    ("tcp", WORDS | {"head": "dept"}),
]
MORE: list[tuple[str, dict[str, Any]]] = [  # each addition and each design is in use above already
    ("maple", {"head": "dept", "depth": 2}),
    ("coop", WORDS),
    ("tcp", WORDS),
]
NO_MATRIX = "scores with more than class features, so it has no"


@pytest.fixture(scope="module")
def tiny() -> FrozenCLIP:
    return load_clip("vlprompt-tiny", device="cpu")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Four images of each colour, with noise."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for name, colour in COLOURS.items():
        for i in range(4):
            pixels = np.clip(np.array(colour) + rng.normal(0, 40, (64, 64, 3)), 0, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{name}{i}.png")
    return sorted(map(str, folder.iterdir()))


def predicted(command: list[str], output: Path) -> tuple[list[str], list[float]]:
    """Classes and probabilities that a command writes."""
    assert main([*command, f"output={output}"]) == 0
    rows = list(csv.DictReader(output.open(encoding="utf-8")))
    return [row["class"] for row in rows], [float(row["probability"]) for row in rows]


@pytest.mark.parametrize(
    ("method", "options"), [*USUAL, *(pytest.param(*each, marks=pytest.mark.nightly) for each in MORE)], ids=str
)
def test_it_is_fitted_saved_predicted_and_exported(
    method: str, options: dict[str, Any], tiny: FrozenCLIP, photos: list[str], tmp_path: Path
) -> None:
    names = [Path(photo).stem[:-1] for photo in photos]
    fitted = PromptClassifier(method, tiny, options=options, epochs=2, views=1, batch_size=6, device="cpu")
    pool = {"X_unlabelled": photos} if method == "promptkd" else {}
    fitted.fit(photos, names, **pool)
    expected = fitted.predict_proba(photos)
    folder = fitted.learner_.save_pretrained(tmp_path / "learner")
    command = ["predict", f"learner={folder}", "device=cpu", *photos]
    classes, probabilities = predicted(command, tmp_path / "said.csv")
    assert classes == fitted.predict(photos).tolist()
    assert probabilities == pytest.approx(expected.max(axis=1).tolist(), abs=1e-4)
    learner = load_learner(folder, clip=tiny)
    images = torch.stack([tiny.preprocess(Image.open(photo)) for photo in photos[::3]])
    with torch.no_grad():
        logits = learner(images)
    program = torch.export.load(export_learner(learner, "torch", tmp_path / "it.pt2")).module()
    assert torch.allclose(program(images), logits, rtol=1e-4, atol=1e-4)
    if learner.facts.head:
        with pytest.raises(VlpromptError, match=NO_MATRIX):
            export_learner(learner, "matrix", tmp_path / "head.safetensors")
        return
    head = load_file(export_learner(learner, "matrix", tmp_path / "head.safetensors"))
    features = learner.image_features(images)
    assert torch.allclose(head["logit_scale"] * features @ head["weight"].T + head["logit_bias"], logits, atol=1e-3)


@pytest.mark.nightly
@pytest.mark.skipif(torch.__version__ < ONNX_TORCH, reason="this torch exports no such ONNX")
@pytest.mark.parametrize(("method", "options"), [*USUAL, *MORE], ids=str)
def test_it_is_exported_as_onnx(method: str, options: dict[str, Any], tiny: FrozenCLIP, tmp_path: Path) -> None:
    from vlprompt import create_learner

    learner = create_learner(method, tiny, list(COLOURS), **options).eval()
    assert export_learner(learner, "onnx", tmp_path / "it.onnx").is_file()  # which compares it
