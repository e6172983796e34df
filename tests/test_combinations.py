"""What papers add to designs goes together by settings: what can be had of which, and the script that tables it."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from vlprompt import VlpromptError
from vlprompt.testing import loss_of, make

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "combine.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("combine", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_all_additions_go_together_on_a_design_that_can_carry_them(script: ModuleType) -> None:
    objective = script.held(make("maple").config.objective)
    learner = make("maple", objective=objective, head="dept", attributes=["color", "playfulness"])
    losses = loss_of(learner.train())
    assert losses.keys() == {"loss", "ce", "text_anchor", "image_anchor", "logit_kl", "ce_linear"}
    learner.backward(losses)
    assert all(p.grad is not None for p in learner.trainable_parameters())
    names = learner.published_state().keys()
    assert {"ctx", "ctx_att2", "film_lp_img.scale", "linear_probe_proj.bias", "proj.weight"} <= names


def test_a_set_of_objectives_is_its_parts() -> None:
    named, spelled = make("ivlp", objective=["promptsrc"]), make("promptsrc", aggregator=None)
    assert [(o.name, o.weight) for o in named.objectives] == [(o.name, o.weight) for o in spelled.objectives]


def test_a_second_head_brings_labels_back() -> None:
    assert make("coop", objective=["promptkd"]).facts.labels == "none"
    assert make("coop", objective=["promptkd"], head="dept").facts.labels == "needed"


def test_a_designs_own_terms_stay_beside_what_is_added(script: ModuleType) -> None:
    own = ["ce(weight=0.7)", "part_ce(part=rep, weight=0.3)", "text_anchor(weight=0.5)"]
    assert script.held(own) == [*own[:2], *script.HELD[1:]]


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        ("coop", {"objective": ["promptsrc"]}, "image_anchor compares prompted with frozen image features"),
        ("vpt", {"objective": ["promptsrc"]}, "text_anchor compares learnt with frozen class features"),
        ("pouf", {"head": "dept"}, "learns from images without labels"),
    ],
)
def test_what_cannot_be_had_says_why(method: str, settings: dict, message: str) -> None:
    with pytest.raises(VlpromptError, match=message):
        make(method, **settings)


def test_the_table_has_numbers_and_refusals(script: ModuleType) -> None:
    cells = {"coop": {name: "it says why" if name == "+PromptSRC" else [] for name in script.ADDED}}
    cells["coop"] = {name: cell if isinstance(cell, str) else "other" for name, cell in cells["coop"].items()}
    text = script.table(cells, {"seeds": [1], "epochs": 2})
    assert "| coop | – | – | – | – | – |" in text
    assert "- `coop` +PromptSRC: it says why" in text
