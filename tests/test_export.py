"""What others get of a learner computes what the learner computes."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from vlprompt import FrozenCLIP, VlpromptError, create_learner, list_methods, load_clip, method_info
from vlprompt.cli.export import main as export
from vlprompt.saving.export import ONNX_TORCH, export_learner
from vlprompt.testing import fit, make, make_ready, small_clip

NAMES = ("cat", "annual_crop land", "an owl", "dog")
# a context of words in front of the class name, or words alone, in whose towers what was learnt is
WORDS_HOLD_IT = {"clip_lora", "coop", "kgcoop", "panda", "pouf", "pre", "prograd", "upl"}


@pytest.fixture(scope="module")
def tiny() -> FrozenCLIP:
    return load_clip("vlprompt-tiny", device="cpu")


def images_for(clip: FrozenCLIP, count: int) -> Tensor:
    return torch.randn(count, 3, clip.image_size, clip.image_size, generator=torch.Generator().manual_seed(4))


def onnx_session(path: Path) -> Any:
    import onnxruntime  # an extra that not every environment has

    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def logits_of_onnx(path: Path, images: Tensor) -> Tensor:
    return torch.from_numpy(onnx_session(path).run(["logits"], {"images": images.numpy()})[0])


def logits_of_torch(path: Path, images: Tensor) -> Tensor:
    return torch.export.load(path).module()(images)


GRAPH_LOGITS = {"onnx": logits_of_onnx, "torch": logits_of_torch}
needs_onnx_exporter = pytest.mark.skipif(torch.__version__ < ONNX_TORCH, reason="this torch exports no such ONNX")
GRAPHS = [pytest.param("onnx", marks=needs_onnx_exporter), "torch"]


def same(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", list_methods())
def test_the_matrix_scores_as_the_learner(method: str, tmp_path: Path) -> None:
    learner = make(method).eval()
    reasons = {
        "cocoop": "class features depend on each image",
        "mocoop": "class features depend on each image",
        "spg": "class features depend on each image",
        "ctp_tft": "class features depend on each image",
        "tpt": "predicts from views",
        "difftpt": "predicts from views",
        "mask_prompt": "predicts from image and mask",
    }
    if learner.facts.predicts != "alone":
        reasons[method] = "needs other test images"
    elif learner.facts.head and learner.linear_head(learner.text_features()) is None:
        reasons.setdefault(method, "no \\(C, D\\) matrix")
    if method in reasons:
        with pytest.raises(VlpromptError, match=reasons[method]):
            export_learner(learner, "matrix", tmp_path / "head.safetensors")
        return
    export_learner(learner, "matrix", tmp_path / "head.safetensors")
    head = load_file(tmp_path / "head.safetensors")
    images = images_for(learner.clip, 3)
    with torch.no_grad():
        features = learner.image_features(images)
        logits = head["logit_scale"] * features @ head["weight"].T + head["logit_bias"]
        assert same(logits, learner(images))
    facts = json.loads((tmp_path / "head.json").read_text())
    assert facts["class_names"] == list(learner.class_names)
    assert facts["image_tower"] == ("frozen" if learner.facts.cacheable_images else "prompted")
    with safe_open(tmp_path / "head.safetensors", framework="pt") as opened:
        assert json.loads(opened.metadata()["class_names"]) == list(learner.class_names)


def test_the_matrix_is_a_head_for_open_clip_alone(tiny: FrozenCLIP, tmp_path: Path) -> None:
    learner = create_learner("coop", tiny, NAMES, n_ctx=4)
    export_learner(learner, "matrix", tmp_path / "head.safetensors")
    images, head = images_for(tiny, 3), load_file(tmp_path / "head.safetensors")
    with torch.no_grad():
        features = F.normalize(tiny.model.encode_image(images), dim=-1)  # OpenCLIP's own forward pass
        assert same(head["logit_scale"] * features @ head["weight"].T, learner(images))


@pytest.mark.parametrize("to", GRAPHS)
def test_onnx_and_torch_give_the_learners_logits_at_any_batch_size(to: str, tmp_path: Path) -> None:
    learner = make("restore")  # prompts in both towers, a coupling and changes behind the towers
    fit(learner, 1)
    learner.eval()
    path = export_learner(learner, to, tmp_path / f"learner.{to}")
    assert json.loads((tmp_path / "learner.json").read_text())["image_tower"] == "prompted"
    for count in (1, 2, 7):
        images = images_for(learner.clip, count)
        with torch.no_grad():
            assert same(GRAPH_LOGITS[to](path, images), learner(images))


@pytest.mark.parametrize(
    ("method", "beneath", "to"),
    [
        pytest.param("gda", None, "onnx", marks=needs_onnx_exporter),
        pytest.param("tip_adapter", None, "onnx", marks=needs_onnx_exporter),
        ("clip_adapter", None, "torch"),
        ("tip_adapter_f", "vpt", "torch"),
        *(
            pytest.param(method, beneath, to, marks=[pytest.mark.nightly, needs_onnx_exporter])
            for method, beneath, to in (
                ("gda", None, "torch"),
                ("tip_adapter", None, "torch"),
                ("clip_adapter", None, "onnx"),
                ("tip_adapter_f", "vpt", "onnx"),
                ("zs_lp", None, "torch"),
                ("zs_lp", None, "onnx"),
            )
        ),
    ],
)
def test_heads_of_each_kind_give_their_logits_from_images(
    method: str, beneath: str | None, to: str, tmp_path: Path
) -> None:
    place = make(beneath).save_pretrained(tmp_path / "beneath") if beneath else None
    head = make_ready(method, text=place and str(place)).eval()
    path = export_learner(head, to, tmp_path / f"head.{to}")
    facts = json.loads((tmp_path / "head.json").read_text())
    assert facts["image_tower"] == ("prompted" if beneath else "frozen")
    for count in (1, 5):
        images = images_for(head.clip, count)
        with torch.no_grad():
            assert same(GRAPH_LOGITS[to](path, images), head(images))


@needs_onnx_exporter
def test_an_onnx_file_says_how_it_is_used(tmp_path: Path) -> None:
    learner = make("vpt").eval()
    path = export_learner(learner, "onnx", tmp_path / "learner.onnx")
    session = onnx_session(path)
    assert session.get_inputs()[0].shape == ["batch", 3, 32, 32]
    facts = session.get_modelmeta().custom_metadata_map
    assert json.loads(facts["class_names"]) == list(learner.class_names)
    assert json.loads(facts["mean"]) == pytest.approx(learner.clip.image_mean)


@pytest.mark.skipif(not all(map(find_spec, ("onnx", "onnxruntime", "onnxscript"))), reason="no export extra")
def test_a_torch_that_is_too_old_for_onnx_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # case: the lowest versions that setup.cfg allows
    monkeypatch.setattr("vlprompt.saving.export.ONNX_TORCH", "99.0")
    with pytest.raises(VlpromptError, match=r"^torch .* cannot write .*\(torch to 99\.0 or later\), or export"):
        export_learner(make("vpt"), "onnx", tmp_path / "learner.onnx")


@pytest.mark.parametrize("to", GRAPHS)
def test_a_classifier_of_each_image_exports_for_one_image_at_a_time(to: str, tmp_path: Path) -> None:
    learner = make("cocoop").eval()
    images = images_for(learner.clip, 2)
    with torch.no_grad():
        expected = learner(images)
    path = export_learner(learner, to, tmp_path / f"learner.{to}")
    assert json.loads(path.with_suffix(".json").read_text())["batch"] == 1
    for i in range(2):
        assert same(GRAPH_LOGITS[to](path, images[i : i + 1]), expected[i : i + 1])
    assert learner.edits == []


@pytest.mark.parametrize("method", list_methods())
def test_open_clip_gets_a_model_or_a_reason(method: str, tiny: FrozenCLIP, tmp_path: Path) -> None:
    depths = {key: 2 for key in ("depth", "vision_depth") if key in method_info(method)["config"]}
    learner = create_learner(method, tiny, NAMES, **depths)
    if method not in WORDS_HOLD_IT:
        with pytest.raises(VlpromptError) as error:
            export_learner(learner, "openclip", tmp_path / "model")
        assert str(error.value).startswith(f"{method} with these settings")
        return
    export_learner(learner, "openclip", tmp_path / "model")
    use = json.loads((tmp_path / "model/classifier.json").read_text())
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'model'}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'model'}")
    other = ["a tapir", "vending machine"]  # classes that the learner was not made for
    learner.set_class_names(other)
    images = images_for(tiny, 3)
    with torch.no_grad():
        text = F.normalize(model.eval().encode_text(tokenizer([use["template"].format(name) for name in other])), dim=1)
        image = F.normalize(model.encode_image(images), dim=1)
        assert same(model.logit_scale.exp() * image @ text.T, learner(images))


@pytest.mark.parametrize(
    ("method", "settings", "reason"),
    [
        ("coop", {"class_token_position": "middle", "n_ctx": 4}, "its context not only in front of the class name"),
        ("coop", {"class_token_position": "front", "n_ctx": 4}, "its context not only in front of the class name"),
        ("coop", {"class_specific": True, "n_ctx": 2}, "its context not only in front of the class name"),
        ("ivlp", {"vision_depth": 0, "depth": 2}, "vectors for deeper blocks"),
        ("mvlpt", {"variant": "mvpt"}, "has no place for learnt tokens"),
        ("proda", {"n_prompts": 4}, "a mean over prompts"),
        ("zero_shot", {}, "learns nothing"),
    ],
    ids=str,
)
def test_reasons_are_of_the_settings(method: str, settings: dict, reason: str, tmp_path: Path) -> None:
    with pytest.raises(VlpromptError, match=reason):
        export_learner(make(method, **settings), "openclip", tmp_path)


def test_fixed_words_behind_the_context_are_kept(tiny: FrozenCLIP, tmp_path: Path) -> None:
    learner = create_learner("ivlp", tiny, NAMES, n_ctx=2, depth=1, vision_depth=0)
    export_learner(learner, "openclip", tmp_path)
    assert len(json.loads((tmp_path / "classifier.json").read_text())["replaced"]) == 4


def test_a_model_object_has_no_open_clip_configuration(tmp_path: Path) -> None:
    with pytest.raises(VlpromptError, match="OpenCLIP's configuration of custom is not known"):
        export_learner(make("coop", n_ctx=2), "openclip", tmp_path)


def test_bad_input_is_answered_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(VlpromptError, match="unknown form 'onx': did you mean onnx"):
        export_learner(make("coop"), "onx", tmp_path / "x")
    with pytest.raises(VlpromptError, match="load it with precision=fp32"):
        export_learner(make("coop", small_clip("bf16")), "matrix", tmp_path / "x")

    def absent(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr("vlprompt.saving.export.importlib.import_module", absent)
    with pytest.raises(VlpromptError, match=r'needs onnxruntime: pip install "vlprompt\[export\]"'):
        export_learner(make("coop"), "onnx", tmp_path / "x")


def test_the_command_exports_a_saved_learner(tiny: FrozenCLIP, tmp_path: Path, capsys) -> None:
    folder = create_learner("vpt", tiny, NAMES, depth=1).save_pretrained(tmp_path / "learner")
    output = tmp_path / "head.safetensors"
    assert (
        export(
            [f"learner={folder}", "to=matrix", f"output={output}", "classes=[tapir,okapi]", "backbone=vlprompt-tiny"]
        )
        == 0
    )
    assert json.loads(output.with_suffix(".json").read_text())["class_names"] == ["tapir", "okapi"]
    said = capsys.readouterr().out
    assert "2 classes" in said
    assert "its image features are prompted" in said
    for arguments, message in (
        (["to=onnx"], "needs learner=DIR"),
        ([f"learner={folder}"], "needs to=matrix|torch|onnx|openclip"),
        ([f"learner={folder}", "to=onx"], "did you mean onnx"),
        (["learner=/nowhere", "to=onnx"], "no saved learner in /nowhere"),
        ([f"learner={folder}", "to=openclip"], "has no place for learnt tokens"),
    ):
        assert export(arguments) == 2
        assert message in capsys.readouterr().err


def test_a_diverged_learner_is_not_exported(tmp_path: Path) -> None:
    learner = make("coop").eval()
    with torch.no_grad():
        learner.prompt.ctx.mul_(1e30)
    with pytest.raises(VlpromptError, match=r"coop on .* gives NaN or infinity"):
        export_learner(learner, "matrix", tmp_path / "head.safetensors")
    assert not list(tmp_path.iterdir())
