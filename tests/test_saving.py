"""A saved learner comes back as it was, here and in another process, and its card says what it is."""

from __future__ import annotations

import json
from pathlib import Path

import new_processes
import pytest
import torch
import yaml

from vlprompt import FrozenCLIP, VlpromptError, create_learner, list_methods, load_clip, load_learner, method_info
from vlprompt.learner.aggregation import aggregate
from vlprompt.saving import find_saved
from vlprompt.saving.card import model_card
from vlprompt.saving.description import read_description
from vlprompt.testing import fit, make

NAMES = ("cat", "annual_crop land", "an owl")


def print_logits(folders: list[Path]) -> None:
    """Print what saved learners say of the same images."""
    clip = None  # the first learner finds its own
    for folder in folders:
        learner = load_learner(folder, clip, device="cpu")
        clip = learner.clip
        with torch.no_grad():
            print(learner(images_for(clip)).tolist())


def images_for(clip: FrozenCLIP) -> torch.Tensor:
    return torch.linspace(-1, 1, 2 * 3 * clip.image_size**2).view(2, 3, clip.image_size, clip.image_size)


@pytest.fixture(scope="module")
def tiny() -> FrozenCLIP:
    return load_clip("vlprompt-tiny", device="cpu")


def front_matter(card: str) -> dict:
    return yaml.safe_load(card.split("---\n")[1])


def test_another_process_predicts_the_same(tiny: FrozenCLIP, tmp_path: Path) -> None:
    images, folders, expected = images_for(tiny), [], []
    for method in list_methods():
        depths = {key: 2 for key in ("depth", "vision_depth") if key in method_info(method)["config"]}
        learner = create_learner(method, tiny, NAMES, seed=7, **depths).eval()
        folders.append(learner.save_pretrained(tmp_path / method))
        with torch.no_grad():
            expected.append(learner(images))
    said = new_processes.finish(print_logits, [folders], tmp_path / "said.txt")
    for line, logits, method in zip(said.splitlines(), expected, list_methods(), strict=True):
        torch.testing.assert_close(torch.tensor(json.loads(line)), logits, rtol=1e-5, atol=1e-5, msg=method)


def test_the_aggregated_weights_are_kept_and_the_last_ones_beside_them(tmp_path: Path) -> None:
    learner = make("coop", n_ctx=2, aggregator="ema")
    for epoch in range(2):
        fit(learner, 1)
        aggregate(learner, epoch, 2)
    learner.save_pretrained(tmp_path)
    assert (tmp_path / "last.safetensors").exists()
    assert torch.equal(load_learner(tmp_path, clip=learner.clip).prompt.ctx, learner.prompt.ctx)


def test_a_runs_folder_stands_for_its_learner(tmp_path: Path) -> None:
    learner = make("coop", n_ctx=2)
    folder = learner.save_pretrained(tmp_path / "run/learner")
    assert find_saved(tmp_path / "run") == find_saved(folder) == folder
    assert load_learner(tmp_path / "run", clip=learner.clip).class_names == learner.class_names
    with pytest.raises(VlpromptError, match=r"no saved learner in .*: config.json is missing"):
        find_saved(tmp_path)


@pytest.mark.parametrize("method", list_methods())
def test_the_card_has_front_matter_that_the_hub_can_read(method: str, tmp_path: Path) -> None:
    card = (make(method).save_pretrained(tmp_path, extra={"license": "mit"}) / "README.md").read_text()
    facts = front_matter(card)
    assert facts["library_name"] == "vlprompt"
    assert facts["license"] == "mit"
    assert {"prompt-learning", method} <= set(facts["tags"])
    assert "model-index" not in facts, "results that nobody measured"
    assert method_info(method)["paper"] in card


def test_the_card_names_the_backbones_repository_and_the_datas_licence(tmp_path: Path) -> None:
    folder = make("coop", n_ctx=2).save_pretrained(tmp_path, extra={"dataset": "eurosat"})
    described = read_description(folder)
    described["source"] = {"name": "ViT-B-16", "pretrained": "openai", "checkpoint": None}
    card = model_card(described, make("coop").facts, 128)
    assert front_matter(card)["base_model"].startswith("timm/vit_base_patch16_clip_224.openai")
    assert "EuroSAT (eurosat); licence: MIT" in card


def test_names_cannot_break_out_of_the_card(tmp_path: Path) -> None:
    names = ("a | b", "[x](http://y)", "---\nlicense: evil", "<b>bold")
    extra = {"dataset": "my own", "no\nnew line": "```\n# big"}
    card = (make("coop", names=names, n_ctx=2).save_pretrained(tmp_path, extra=extra) / "README.md").read_text()
    assert "license" not in front_matter(card)
    assert sum(line.startswith("# ") for line in card.splitlines()) == 1
    assert r"a \| b, \[x\](http://y), --- license: evil, \<b\>bold" in card
