"""Nothing executes: folders of models, runs, Hub repositories and pickles, by every command that reads one."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_server import Hub, serve, visit
from open_clip.model import CLIP
from PIL import Image
from safetensors.torch import load_file, save_file

import vlprompt
from vlprompt import VlpromptError, load_clip
from vlprompt.base.sealed import seal
from vlprompt.cli.__main__ import main
from vlprompt.clip.model_folders import nothing_asked, refuse_code

MARKER = "something-ran"
SIZES = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1},
}
AUTO_TOKENIZER = {"auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]}, "tokenizer_class": "Tokenizer"}
AUTO_MODEL = {"auto_map": {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}, "model_type": "evil"}
ESCAPED = '"hf_tokenizer_name": "x", "tokenizer_kwargs": {"trust_remote\\u005fcode": true}'


class Payload:
    """What pickle would run."""

    def __reduce__(self) -> tuple[Callable, tuple]:
        return os.mkdir, (MARKER,)


@pytest.fixture(autouse=True)
def nothing_ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    yield
    assert not list(tmp_path.rglob(MARKER)), "something ran"


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return CLIP(**json.loads(json.dumps(SIZES))).state_dict()


def model_folder(folder: Path, weights: dict[str, torch.Tensor], text: str = "", **files: dict) -> Path:
    """A tiny OpenCLIP model with more JSON in its text configuration, and files for ``transformers`` beside it."""
    folder.mkdir()
    configuration = json.dumps({"model_cfg": SIZES})
    if text:
        configuration = configuration.replace('"text_cfg": {', f'"text_cfg": {{{text}, ')
    (folder / "open_clip_config.json").write_text(configuration)
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / "open_clip_model.safetensors")
    (folder / "evil.py").write_text(
        f"import os\nos.mkdir({MARKER!r})\nclass Tokenizer: pass\nclass Config: pass\nclass Model: pass\n"
    )
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def refusal(action: Any, *arguments: Any, **settings: Any) -> str:
    with pytest.raises(VlpromptError) as error:
        action(*arguments, **settings)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("text", "files", "sentence"),
    [
        (ESCAPED, {"tokenizer_config": AUTO_TOKENIZER}, "(trust_remote_code in open_clip_config.json)"),
        (ESCAPED.replace("true", '"yes"'), {}, "(trust_remote_code in open_clip_config.json)"),
        ('"tokenizer_kwargs": {"trust_remote_code": 1}', {}, "(trust_remote_code in open_clip_config.json)"),
        ('"act_kwargs": {"deep": [{"trust_remote_code": true}]}', {}, "(trust_remote_code in open_clip_config.json)"),
        ('"hf_tokenizer_name": "x"', {"tokenizer_config": AUTO_TOKENIZER}, "(auto_map in "),
        ('"hf_tokenizer_name": "x"', {"config": AUTO_MODEL}, "(auto_map in "),
        ('"hf_model_name": "text"', {}, "(auto_map in text/config.json)"),
        ('"hf_tokenizer_name": "text"', {}, "(auto_map in text/config.json)"),
        (f'"tokenizer_kwargs": {{}}, {ESCAPED}', {}, "a key stands twice in one object"),
        ('"tokenizer_kwargs": {"vocab_file": "/etc/passwd"}', {}, "gives its tokenizer the argument 'vocab_file'"),
        ('"tokenizer_kwargs": {"bpe_path": "/etc/passwd"}', {}, "gives its tokenizer the argument 'bpe_path'"),
        ('"act_kwargs": ' + "[" * 50_000 + "]" * 50_000, {}, "recursion"),
        ('"surprise": 3', {}, "unexpected keyword argument 'surprise'"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_model_folder_that_wants_code_to_run_is_refused(
    text: str, files: dict, sentence: str, tmp_path: Path, weights: dict
) -> None:
    # case: local model folder whose JSON spells `"trust_remote\u005fcode": true` in `tokenizer_kwargs`
    model_folder(tmp_path / "text", weights, config=AUTO_MODEL)
    folder = model_folder(tmp_path / "model", weights, text, **files)
    assert sentence in refusal(load_clip, f"local-dir:{folder}", device="cpu")


def test_a_plain_model_folder_loads_and_a_false_flag_is_no_request(tmp_path: Path, weights: dict) -> None:
    folder = model_folder(tmp_path / "model", weights, '"tokenizer_kwargs": {"clean": "lower"}')
    assert load_clip(f"local-dir:{folder}", device="cpu").image_size == 32
    refuse_code(f"local-dir:{model_folder(tmp_path / 'b', weights, ESCAPED.replace('true', 'false'))}")


def test_a_folder_that_is_called_like_a_published_text_tower_is_looked_at(tmp_path: Path, weights: dict) -> None:
    # case: local model folder whose JSON spells `"trust_remote\u005fcode": true` in `tokenizer_kwargs`
    model_folder(tmp_path / "roberta-base", weights, config=AUTO_MODEL)
    said = refusal(load_clip, "roberta-ViT-B-32", "random", device="cpu")
    assert "(auto_map in roberta-base/config.json), which is never done by name" in said


def test_transformers_asks_nobody_on_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    # case: local model folder whose JSON spells `"trust_remote\u005fcode": true` in `tokenizer_kwargs`
    module = types.ModuleType("transformers.dynamic_module_utils")
    module.TIME_OUT_REMOTE_CODE = 15
    monkeypatch.setitem(sys.modules, "transformers", types.ModuleType("transformers"))
    monkeypatch.setitem(sys.modules, "transformers.dynamic_module_utils", module)

    def load() -> None:
        with nothing_asked("x"):
            assert module.TIME_OUT_REMOTE_CODE == 0
            raise ValueError("Please set the option `trust_remote_code=True` to permit loading of this model.")

    assert "x needs its authors' code to be run, which is never done by name" in refusal(load)
    assert module.TIME_OUT_REMOTE_CODE == 15


def test_with_transformers_installed_nothing_runs_even_where_the_files_are_not_looked_at(
    tmp_path: Path, weights: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    # case: local model folder whose JSON spells `"trust_remote\u005fcode": true` in `tokenizer_kwargs`
    pytest.importorskip("transformers")
    folder = model_folder(tmp_path / "a", weights, '"hf_tokenizer_name": "x"', tokenizer_config=AUTO_TOKENIZER)
    monkeypatch.setattr(vlprompt.clip.loading, "refuse_code", lambda name: None)
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 9))
    assert "needs its authors' code to be run" in refusal(load_clip, f"local-dir:{folder}", device="cpu")


@pytest.mark.parametrize("legacy", [False, True])
def test_weights_of_a_model_folder_are_read_as_data(legacy: bool, tmp_path: Path, weights: dict) -> None:
    # case: a checkpoint as Dassl saves it: zip and legacy format; nothing of the file's is executed or imported
    folder = model_folder(tmp_path / "model", weights)
    (folder / "open_clip_model.safetensors").unlink()
    file = folder / "open_clip_pytorch_model.bin"
    torch.save({"state_dict": weights, "scheduler": Payload()}, file, _use_new_zipfile_serialization=not legacy)
    clip = load_clip(f"local-dir:{folder}", device="cpu")
    assert torch.equal(clip.model.text_projection, weights["text_projection"])
    file.write_bytes(pickle.dumps(Payload()))
    assert "it is a pickle that torch.save did not write" in refusal(load_clip, f"local-dir:{folder}", device="cpu")
    file.unlink()
    assert "holds no weights" in refusal(load_clip, f"local-dir:{folder}", device="cpu")


QUICK = ["dataset=digits", "shots=1", "epochs=1", "limit=5", "views=1", "n_ctx=1", "ctx_init=null", "workers=0"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, weights: dict) -> Path:
    """A folder that holds a backbone, a finished run on it and an image."""
    place = tmp_path_factory.mktemp("finished")
    backbone = model_folder(place / "backbone", weights)
    argv = [f"backbone=local-dir:{backbone}", "device=cpu", f"output={place}", "name=run", "--quiet"]
    assert main(["train", *QUICK, *argv]) == 0
    Image.new("RGB", (32, 32)).save(place / "image.png")
    return place


def commands(place: Path) -> dict[str, list[str]]:
    """A command of each kind that reads a run, a learner or a backbone."""
    run, backbone = place / "run", f"backbone=local-dir:{place / 'backbone'}"
    return {
        "train": ["train", *QUICK, backbone, f"output={place}", "name=new"],
        "train config=": ["train", f"config={run / 'config.yaml'}", f"output={place}", "name=new"],
        "train init_from=": ["train", *QUICK, backbone, f"output={place}", "name=new", f"init_from={run}"],
        "train resume=": ["train", f"config={run / 'config.yaml'}", "resume=true"],
        "evaluate run=": ["evaluate", f"run={run}"],
        "evaluate learner=": ["evaluate", f"learner={run}", "dataset=digits", "limit=5"],
        "predict": ["predict", f"learner={run}", str(place / "image.png")],
        "export": ["export", f"learner={run}", "to=matrix", f"output={place / 'matrix.safetensors'}"],
        "push": ["push", f"learner={run}", "repo=me/it", "dry_run=true"],
        "import-checkpoint": [
            *("import-checkpoint", str(place / "payload.pth"), "method=coop", backbone, "classes=[cat,dog]"),
            f"output={place / 'imported'}",
        ],
        "report": ["report", str(place)],
        "sweep": ["sweep", "methods=[coop]", "seeds=[1]", *QUICK, backbone, f"output={place / 'sweep'}"],
    }


READ_A_BACKBONE = [
    *("train", "train config=", "train init_from=", "evaluate run=", "evaluate learner=", "predict", "export"),
    *("import-checkpoint", "sweep"),
]


@pytest.mark.parametrize("name", READ_A_BACKBONE)
def test_no_command_runs_code_of_a_backbone(
    name: str, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # case: local model folder whose JSON spells `"trust_remote\u005fcode": true` in `tokenizer_kwargs`
    file = finished / "backbone/open_clip_config.json"
    before = file.read_text()
    torch.save({"a": torch.zeros(1)}, finished / "payload.pth")
    file.write_text(before.replace('"text_cfg": {', f'"text_cfg": {{{ESCAPED}, '))
    try:
        assert main(commands(finished)[name]) in (1, 2)
    finally:
        file.write_text(before)
    said = capsys.readouterr()
    assert "needs its authors' code to be run" in said.out + said.err
    assert "Traceback" not in said.err


PICKLED = ["learner/config.json", "result.json", "predictions.safetensors", "config.yaml"]
READ_A_RUN = [
    *("train init_from=", "train resume=", "evaluate run=", "evaluate learner=", "predict", "export", "push"),
    *("import-checkpoint", "report"),
]


@pytest.mark.parametrize(
    "file", ["learner/learner.safetensors", *(pytest.param(file, marks=pytest.mark.nightly) for file in PICKLED)]
)
def test_no_command_unpickles_a_file_of_a_run(
    file: str, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # case: a file whose pickle would write a marker file leaves none
    place = tmp_path / "place"
    shutil.copytree(finished, place, ignore=shutil.ignore_patterns("backbone"))
    torch.save({"state_dict": Payload()}, place / "payload.pth")
    assert (place / "run" / file).exists()
    argv = commands(place)
    (place / "run" / file).write_bytes(pickle.dumps(Payload()))
    for name in READ_A_RUN:
        assert main([a.replace(str(place / "backbone"), str(finished / "backbone")) for a in argv[name]]) in (0, 1, 2)
        assert "Traceback" not in capsys.readouterr().err, name


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serve() as server:
        visit(server, tmp_path / "hub", monkeypatch)
        yield server


def on_the_hub(hub: Hub, learner: Path, **changes: Any) -> None:
    config = json.loads((learner / "config.json").read_text()) | changes
    files = {
        "config.json": json.dumps(seal(config)).encode(),
        "learner.safetensors": (learner / "learner.safetensors").read_bytes(),
        "evil.py": f"import os\nos.mkdir({MARKER!r})\n".encode(),
        "__init__.py": f"import os\nos.mkdir({MARKER!r})\n".encode(),
    }
    hub.repos["me/it"] = {"private": False, "files": files}


def test_a_learner_on_the_hub_is_scored_as_one_in_a_folder(
    hub: Hub, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # case: `evaluate learner=hf://…`
    on_the_hub(hub, finished / "run/learner")
    backbone = [f"backbone=local-dir:{finished / 'backbone'}", "device=cpu"]
    scored = ["dataset=digits", "half=base", "limit=5", *backbone]
    said = []
    for learner in (str(finished / "run"), "hf://me/it"):
        assert main(["evaluate", f"learner={learner}", *scored, f"output={tmp_path / 'scores.json'}"]) == 0
        said.append(json.loads((tmp_path / "scores.json").read_text())["accuracy"])
    assert said[0] == said[1]
    assert main(["predict", "learner=hf://me/it", str(finished / "image.png"), *backbone]) == 0
    assert main(["export", "learner=hf://me/it", "to=matrix", *backbone[:1], "output=matrix.safetensors"]) == 0
    assert load_file("matrix.safetensors")
    assert main(["push", "learner=hf://me/it", "repo=me/other"]) == 2
    assert "hf://me/it is an address on the Hub, and a folder of yours is needed here" in capsys.readouterr().err
    assert main(["train", *QUICK, "init_from=hf://me/it", "output=runs"]) == 2
    assert "is an address on the Hub" in capsys.readouterr().err
    assert main(["evaluate", "run=hf://me/it"]) == 2
    assert "is an address on the Hub" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["evaluate", "predict", "export"])
def test_nothing_of_a_hub_repository_runs(
    command: str, hub: Hub, finished: Path, tmp_path: Path, weights: dict, capsys: pytest.CaptureFixture[str]
) -> None:
    # case: nothing executes: a Hub repository, by each command that reads one
    evil = model_folder(tmp_path / "evil", weights, ESCAPED, tokenizer_config=AUTO_TOKENIZER)
    images = [str(finished / "image.png")]
    rest = {"evaluate": ["dataset=digits", "limit=5"], "predict": images, "export": ["to=matrix"]}
    for name in (f"local-dir:{evil}", "hf-hub:me/it"):
        on_the_hub(hub, finished / "run/learner", source={"name": name, "pretrained": None, "checkpoint": None})
        assert main([command, "learner=hf://me/it", *rest[command]]) == 2
        assert "asks for a backbone from elsewhere" in capsys.readouterr().err
        assert main([command, "learner=hf://me/it", *rest[command], f"backbone=local-dir:{evil}"]) == 2
        assert "needs its authors' code to be run" in capsys.readouterr().err
    on_the_hub(hub, finished / "run/learner")
    hub.repos["me/other"] = hub.repos.pop("me/it")
    hub.repos["me/other"]["files"]["learner.safetensors"] = pickle.dumps(Payload())
    assert main([command, "learner=hf://me/other", *rest[command], f"backbone=local-dir:{finished / 'backbone'}"]) == 2
    assert "Traceback" not in capsys.readouterr().err
