"""Commands that compute nothing import nothing that computes: what would take seconds may not be imported by them."""

from __future__ import annotations

import dataclasses
import importlib
import json
import subprocess
import sys

import pytest
from open_clip import list_models, list_pretrained_tags_by_model

import vlprompt
from vlprompt.base.static_inspection import fields_of, registered
from vlprompt.base.wiring import exports_of
from vlprompt.cli.__main__ import commands
from vlprompt.clip.catalog import tags_by_backbone
from vlprompt.learner import METHODS

# what a press of TAB, and what help and lists may not import
LISTING = ("numpy", "PIL", "filelock", "safetensors", "subprocess")
COMPLETING = (*LISTING, "tempfile", "yaml", "rich", "pydantic", "inspect", "difflib")
HEAVY = ("torch", "torchvision", "open_clip", "timm", "scipy", "sklearn", "matplotlib", "huggingface_hub", "ray")
TAB = [
    ["completion", "words", *line]
    for line in (
        [""],
        ["train", "method=maple", ""],
        ["train", "--meth"],
        ["data", "info", ""],
        ["sweep", "methods=[co"],
    )
]
LISTS = [
    [],
    ["--help"],
    ["--version"],
    *(["list", kind] for kind in ("methods", "backbones", "recipes")),
    ["list", "methds"],
    ["completion", "bash"],
]
CARDS = [["list", "datasets"], ["list", "protocols"]]  # which pydantic holds to their types
AT_ONCE = [
    ["data", "list"],
    ["data", "info", "eurosat"],
    *([name, "--help"] for name in commands() if name != "train"),
    ["bench", "clases=3"],
    ["evaluate", "lerner=here"],
    ["export", "lerner=here"],
    ["import-checkpoint", "FILE", "method=coop", "backbone=RN50", "output=here", "n_cxt=4"],
    ["inspect", "rum=here"],
    ["inspect", "run=here", "limit=3"],
    ["predict", "lerner=here"],
    ["push", "lerner=here"],
    ["report", "metrc=ece"],
    ["sweep", "executor=slurm"],
    ["sweep", "methods=[coop,mapel]"],
    ["train", "--version"],
    ["train", "method=coop", "n_cxt=4"],
    ["train", "method=mapel"],
    ["train", "method=coop", "protocol=few_shots"],
    ["train", "method=coop", "epochs=0"],
    ["train", "method=coop", "seed=one"],
]
SCRIPT = """
import contextlib, io, json, sys
before, found = set(sys.modules), {}  # of what starts Python itself, as an editable install does
import vlprompt
from vlprompt.cli.__main__ import main
for heavy, lines in json.loads(sys.argv[1]):
    for arguments in lines:
        with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as told:
            status = main(arguments)
        found[" ".join(arguments)] = [name for name in heavy if name in sys.modules and name not in before]
        assert out.getvalue() if status == 0 else told.getvalue(), arguments
vlprompt.list_backbones(pretrained=True)
found["list_backbones"] = [name for name in heavy if name in sys.modules]
print(json.dumps(found))
"""


def test_what_computes_nothing_imports_nothing_heavy() -> None:
    asked = [
        ((*HEAVY, *COMPLETING), TAB),
        ((*HEAVY, *LISTING, "pydantic"), LISTS),
        ((*HEAVY, *LISTING), CARDS),
        (HEAVY, AT_ONCE),
    ]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(asked)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    told = ["list_backbones", *(" ".join(arguments) for _, lines in asked for arguments in lines)]
    assert json.loads(done.stdout) == {what: [] for what in told}


def test_methods_are_read_as_they_are_registered() -> None:
    read = registered("vlprompt.methods")
    shipped = {name for name in METHODS.names() if METHODS.get(name).__module__.startswith("vlprompt.methods")}
    assert {name: each.summary for name, each in read.items()} == {name: METHODS.info(name).summary for name in shipped}
    for name, each in read.items():
        fields = [field.name for field in dataclasses.fields(METHODS.get(name).Config)]
        assert sorted(set(fields_of(each) or ())) == sorted(fields), name


def test_backbones_are_read_as_open_clip_lists_them() -> None:
    assert list(tags_by_backbone()) == list_models()
    assert all(list(tags) == list_pretrained_tags_by_model(name) for name, tags in tags_by_backbone().items())


ROOMS = ["analysis", "bench", "clip", "data", "estimator", "evaluation", "learner", "runs", "saving", "training"]


@pytest.mark.parametrize("package", ["vlprompt", *(f"vlprompt.{room}" for room in ROOMS)])
def test_a_package_exports_what_it_declares_to_type_checkers(package: str) -> None:
    exporting = importlib.import_module(package)
    declared = set(exports_of(package)) | ({"VlpromptError", "__version__"} if package == "vlprompt" else set())
    assert set(exporting.__all__) == declared
    assert declared <= set(dir(exporting))
    for name, place in exports_of(package).items():
        if not place.startswith("vlprompt.typed"):  # a stub
            module, _, attribute = place.partition(":")
            assert getattr(exporting, name) is getattr(importlib.import_module(module), attribute)
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'nothing'"):
        exporting.nothing  # noqa: B018


def test_the_face_has_its_rooms_and_functions() -> None:
    assert vlprompt.runs.run is vlprompt.run
    assert vlprompt.evaluation.score.__name__ == "score"  # a function, and no module of that name
    assert vlprompt.data.__name__ == "vlprompt.data"
