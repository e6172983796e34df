"""A saved learner may come from anyone: what is wrong with it is refused in one sentence, and nothing in it runs."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from vlprompt import VlpromptError, load_learner
from vlprompt.base.sealed import seal, write_tensors
from vlprompt.testing import NAMES, loss_of, make, small_clip

MARKER = "something-ran"


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return make("coop", n_ctx=2).save_pretrained(tmp_path / "learner")


@pytest.fixture
def little_memory() -> Iterator[None]:
    """Let this process have no more than 2 GB beyond what it has, so that a huge allocation fails at once."""
    resource = pytest.importorskip("resource")
    if not Path("/proc/self/statm").exists():
        pytest.skip("the memory of this process cannot be read here")
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + 2 * 2**30, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, limits)


def tamper(folder: Path, **changes: Any) -> Path:
    """Change fields of a saved learner's configuration; a dict is merged into the dict there."""
    file = folder / "config.json"
    content = json.loads(file.read_text())
    for key, value in changes.items():
        merge = isinstance(value, dict) and isinstance(content.get(key), dict)
        content[key] = content[key] | value if merge else value
    file.write_text(json.dumps(seal(content)))  # whoever means it can make the hash anew
    return folder


def replace_tensors(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Give a saved learner other tensors, with the hashes that they then have."""
    tamper(folder, files={"learner.safetensors": write_tensors(folder / "learner.safetensors", tensors)})


def refusal(folder: Path, **options: Any) -> str:
    with pytest.raises(VlpromptError) as error:
        load_learner(folder, **({"clip": small_clip()} | options))
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 600
    return str(error.value)


def deep(levels: int) -> str:
    return '{"format": ' + "[" * levels + "]" * levels + "}"


class Payload:
    """What pickle would run."""

    def __reduce__(self) -> tuple[Callable, tuple]:
        return os.mkdir, (MARKER,)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "cop"}, "unknown method 'cop': did you mean coop"),
        ({"method": "../../evil"}, "unknown method '../../evil'"),
        ({"method": ["coop"]}, "'method' must be a method's name"),
        ({"format": "1"}, "'format' must be a whole number"),
        ({"format": True}, "'format' must be a whole number"),
        ({"format": 0}, "'format' must be a whole number from 1"),
        ({"format": 99}, "was written by a newer vlprompt"),
        ({"config": ["n_ctx", 2]}, "'config' must be the method's settings"),
        ({"config": {"n_ctx": {"a": {"b": 1}}}}, "'config' must be the method's settings"),
        ({"config": {"n_ctx": {"a": 1}}}, "coop: n_ctx must be a whole number or null, not {'a': 1}"),
        ({"config": {"n_ctx": "two"}}, "coop: n_ctx must be a whole number or null, not 'two'"),
        ({"config": {"n_ctx": -5}}, "leaves nothing to learn"),
        ({"config": {"n_ctx": float("nan")}}, "coop: n_ctx must be a whole number or null, not nan"),
        ({"config": {"text_chunk": 0}}, "text_chunk must be at least 1 class, not 0"),
        ({"config": {"os.system": "ls"}}, "coop: unknown key 'os.system'"),
        ({"config": {"ctx_init": "${oc.env:HOME}"}}, "ctx_init has ${oc.env:HOME}, and settings are not interpolated"),
        ({"config": {"objective": ["ce", "__import__('os').mkdir('something-ran')"]}}, "cannot read objective"),
        ({"config": {"objective": ["ce(weight=open('/etc/passwd'))"]}}, "cannot read objective"),
        ({"config": {"objective": ["(" * 4000]}}, "cannot read objective"),
        ({"config": {"objective": ["ce(weight=" + "-" * 4000 + "1)"]}}, "can"),
        ({"config": {"ctx_init": "a" * 10_001}}, "'config' must be the method's settings"),
        ({"config": {"class_specific": True}}, "do not fit coop with these settings"),
        ({"class_names": "cats"}, "'class_names' must be a list of names"),
        ({"class_names": [1, 2]}, "'class_names' must be a list of names"),
        ({"class_names": ["one"]}, "at least two class names"),
        ({"class_names": ["cat", "d" * 1_000_000]}, "'class_names' must be a list of names"),
        ({"class_names": ["cat", "dim " * 200]}, "shorten the class name"),
        ({"templates": "/etc/passwd"}, "'templates' must be a list of texts"),
        ({"templates": ["/etc/passwd"]}, "'templates' must be a list of texts"),
        ({"templates": []}, "'templates' must be a list of texts"),
        ({"backbone": {"weights": 3}}, "'backbone' must be a backbone's identity"),
        ({"backbone": {"weights": "0" * 64}}, "weights differs"),
        ({"source": {"name": "vlprompt-tiny"}}, "'source' must be null, or name, pretrained and checkpoint"),
        ({"surprise": 1}, "it has the unknown field 'surprise'"),
        ({"extra": None}, "'extra' must be an object"),
    ],
    ids=lambda value: str(value)[:50] if isinstance(value, str) else "",
)
def test_a_tampered_configuration_is_refused(saved: Path, changes: dict, message: str) -> None:
    assert message in refusal(tamper(saved, **changes))
    assert not Path(MARKER).exists()


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("coop", {"n_ctx": 10**9}),
        ("coop", {"n_ctx": 10**30}),
        ("vpt", {"n_ctx": 10**9}),
        ("ivlp", {"vision_n_ctx": 10**8}),
        ("maple", {"depth": 10**9}),
        ("pre", {"n_ctx": 30_000, "shared": False, "ctx_init": None}),
        ("proda", {"n_prompts": 4 * 10**9}),
        ("mvlpt", {"coupling_width": 10**9}),
        ("coprompt", {"reduction": 0}),
    ],
    ids=str,
)
def test_huge_sizes_are_refused_before_memory_is_asked_for(
    method: str, settings: dict, tmp_path: Path, little_memory: None
) -> None:
    refusal(tamper(make(method).save_pretrained(tmp_path), config=settings))


def test_other_shapes_than_the_settings_say_are_refused_before_tensors_are_read(saved: Path) -> None:
    save_file({"prompt.ctx": torch.zeros(3, 64)}, saved / "learner.safetensors")
    assert "prompt.ctx is (3, 64), (2, 64) is expected" in refusal(saved)
    save_file({"prompt.ctx": torch.zeros(2, 64), "more": torch.zeros(1)}, saved / "learner.safetensors")
    assert "see tensor more" in refusal(saved)


@pytest.mark.parametrize(
    ("value", "dtype", "message"),
    [
        (float("nan"), torch.float32, "prompt.ctx holds NaN or infinity"),
        (float("-inf"), torch.bfloat16, "prompt.ctx holds NaN or infinity"),
        (1, torch.int64, "prompt.ctx is torch.int64, which is not a type of learnt tensors"),
        (1, torch.complex64, "prompt.ctx is torch.complex64"),
    ],
    ids=str,
)
def test_tensors_that_are_no_learnt_numbers_are_refused(
    saved: Path, value: float, dtype: torch.dtype, message: str
) -> None:
    try:
        replace_tensors(saved, {"prompt.ctx": torch.full((2, 64), value, dtype=dtype)})
    except KeyError:
        pytest.skip(f"this safetensors knows no {dtype}")
    assert message in refusal(saved)


def test_a_tensor_file_that_declares_more_than_it_holds_is_refused(saved: Path, little_memory: None) -> None:
    header = json.dumps({"prompt.ctx": {"dtype": "F32", "shape": [10**9, 64], "data_offsets": [0, 256 * 10**9]}})
    (saved / "learner.safetensors").write_bytes(len(header).to_bytes(8, "little") + header.encode() + bytes(512))
    assert "learner.safetensors cannot be read" in refusal(tamper(saved, config={"n_ctx": 10**9}))


def test_a_pickle_by_another_name_is_not_unpickled(saved: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for payload in (pickle.dumps(Payload()), pickle.dumps({"prompt.ctx": Payload()}, protocol=0)):
        (saved / "learner.safetensors").write_bytes(payload)
        assert "learner.safetensors cannot be read" in refusal(saved)
    torch.save({"prompt.ctx": Payload()}, saved / "learner.safetensors")
    assert "learner.safetensors cannot be read" in refusal(saved)
    assert not Path(MARKER).exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is not a saved learner's configuration"),
        ("{", "is not a saved learner's configuration"),
        ("[]", "it holds no fields"),
        ("{}", "it lacks field 'format'"),
        (deep(100_000), "is not a saved learner's configuration"),
        ('{"format": ' + "9" * 5000 + "}", "is not a saved learner's configuration"),
        ("\ud800", "is not a saved learner's configuration"),
    ],
    ids=["empty", "half", "list", "nothing", "deep", "digits", "surrogate"],
)
def test_a_configuration_that_is_no_proper_json_is_refused(saved: Path, content: str, message: str) -> None:
    (saved / "config.json").write_bytes(content.encode("utf-8", "surrogatepass"))
    assert message in refusal(saved)


def test_a_configuration_of_a_gigabyte_is_not_read(saved: Path, little_memory: None) -> None:
    with open(saved / "config.json", "r+b") as file:
        file.truncate(2**30 * 8)  # a hole in the file: no disk is used
    assert "has more than 16 MB" in refusal(saved)


@pytest.mark.parametrize("name", ["config.json", "learner.safetensors"])
def test_links_out_of_the_folder_and_devices_are_refused(saved: Path, name: str, tmp_path: Path) -> None:
    real = tmp_path / "elsewhere"
    (saved / name).rename(real)
    (saved / name).symlink_to(real)
    assert "a link that leads out of the learner's folder" in refusal(saved)
    (saved / name).unlink()
    os.mkfifo(saved / name)
    assert "it is not a regular file" in refusal(saved)


def test_a_link_to_the_whole_folder_and_the_hub_caches_links_are_fine(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(saved)
    assert load_learner(tmp_path / "link", clip=small_clip()).class_names == NAMES
    snapshot = tmp_path / "models--me--it/snapshots/abc"
    snapshot.mkdir(parents=True)
    (tmp_path / "models--me--it/blobs").mkdir()
    for name in ("config.json", "learner.safetensors"):
        (saved / name).rename(tmp_path / "models--me--it/blobs" / name)
        (snapshot / name).symlink_to(f"../../blobs/{name}")
    assert load_learner(snapshot, clip=small_clip()).class_names == NAMES


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (None, "it cannot be loaded by name"),
        ({"name": "hf-hub:somebody/evil"}, "asks for a backbone from elsewhere"),
        ({"name": "local-dir:/etc"}, "no usable OpenCLIP model there"),
        ({"name": "../../etc/nobody"}, "unknown backbone '../../etc/nobody'"),
        ({"name": "ViT-B-32", "pretrained": "/etc/passwd"}, "unknown pretrained tag '/etc/passwd'"),
        ({"name": "ViT-B-32", "checkpoint": "/etc/passwd"}, "cannot be read as plain tensors"),
        ({"name": "ViT-B-32", "checkpoint": "../../no/such.pt"}, "no checkpoint at"),
        ({"name": "ViT-B-32", "pretrained": "openai", "checkpoint": "no/a.pt"}, "no checkpoint at no/a.pt"),
    ],
    ids=str,
)
def test_a_backbone_that_is_not_what_it_says_is_refused(saved: Path, source: dict | None, message: str) -> None:
    whole = source and {"name": "vlprompt-tiny", "pretrained": None, "checkpoint": None} | source
    assert message in refusal(tamper(saved, source=whole), clip=None, device="cpu")


def test_a_backbone_folder_that_wants_code_to_run_is_refused(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": {"text_cfg": {"tokenizer_kwargs": {"trust_remote_code": True}}}})
    )
    source = {"name": f"local-dir:{tmp_path}", "pretrained": None, "checkpoint": None}
    assert "if you trust it, load it with open_clip" in refusal(tamper(saved, source=source), clip=None)


def test_a_checkpoint_that_would_unpickle_is_refused(saved: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Payload()}, tmp_path / "weights.pt")
    source = {"name": "ViT-B-32", "pretrained": None, "checkpoint": str(tmp_path / "weights.pt")}
    assert "holds no state dict" in refusal(tamper(saved, source=source), clip=None, device="cpu")
    assert not Path(MARKER).exists()


def test_texts_of_a_loaded_learner_name_no_files(tmp_path: Path) -> None:
    secret = tmp_path / "secret.json"
    secret.write_text(json.dumps({name: ["a {}"] for name in NAMES}))
    fixed = make("vpt").save_pretrained(tmp_path / "vpt")
    learner = load_learner(tamper(fixed, config={"template": str(secret)}), clip=small_clip())
    with pytest.raises(VlpromptError, match="a loaded learner's settings may not name files"):
        learner.text_features()
    anchored = make("coop").save_pretrained(tmp_path / "coop")
    for objective in (f"text_anchor(templates='{secret}')", f"description_anchor(descriptions='{secret}')"):
        learner = load_learner(tamper(anchored, config={"objective": ["ce", objective]}), clip=small_clip())
        with pytest.raises(VlpromptError, match="a loaded learner's settings may not name files"):
            loss_of(learner)


def test_braces_in_templates_are_words(tmp_path: Path) -> None:
    folder = make("zero_shot").save_pretrained(tmp_path)
    learner = load_learner(tamper(folder, templates=["{} {0.__class__} {x}"]), clip=small_clip())
    expected = small_clip().encode_text([f"{name.replace('_', ' ')} {{0.__class__}} {{x}}" for name in NAMES])
    torch.testing.assert_close(learner.text_features(), torch.nn.functional.normalize(expected, dim=-1))


def test_init_from_of_a_saved_learner_is_not_followed(saved: Path, tmp_path: Path) -> None:
    learner = load_learner(tamper(saved, config={"init_from": str(tmp_path / "nowhere")}), clip=small_clip())
    assert torch.equal(learner.prompt.ctx, load_file(saved / "learner.safetensors")["prompt.ctx"])


def test_untampered_learners_of_all_templates_still_load(tmp_path: Path) -> None:
    names = ["a template set is no file", "nor is a template"]
    for i, template in enumerate(["imagenet80", "a photo of a {}."]):
        learner = make("vpt", names=tuple(names), template=template)
        again = load_learner(learner.save_pretrained(tmp_path / str(i)), clip=small_clip())
        assert torch.equal(again.text_features(), learner.text_features())
