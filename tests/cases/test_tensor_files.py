"""Checkpoints in every container that people have, read as numbers; hostile ones stay inert and say one sentence."""

from __future__ import annotations

import contextlib
import copyreg
import functools
import importlib
import io
import os
import pickle
import random
import struct
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from vlprompt import VlpromptError, load_clip, load_learner
from vlprompt.clip.inert_pickle import Inert, read_pickle
from vlprompt.clip.tensor_files import read_tensor_file
from vlprompt.saving.published import import_checkpoint
from vlprompt.testing import NAMES, make, small_clip

STATE = {
    "plain": torch.arange(6.0).view(2, 3),
    "half": torch.ones(3).half(),
    "bf16": torch.ones(3).bfloat16(),
    "whole": torch.tensor(7),
    "turned": torch.arange(24.0).view(4, 6)[1:, ::2].t(),
    "learnt": nn.Parameter(torch.ones(2)),
    "empty": torch.empty(0, 3),
    "flags": torch.tensor([True, False]),
    "spread": torch.ones(1).expand(5),
}


class Small(nn.Module):
    """Two layers and a buffer; one of the layers under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(3, 2), nn.BatchNorm1d(2)
        self.again = self.first

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.again(self.first(x).mean() + x))


def equal(path: Path, state: dict[str, torch.Tensor]) -> bool:
    found, _ = read_tensor_file(path)
    return found.keys() == state.keys() and all(
        torch.equal(found[key], value) and found[key].dtype == value.dtype for key, value in state.items()
    )


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("protocol", [2, 4])
def test_what_torch_save_wrote_is_read_to_the_bit(legacy: bool, protocol: int, tmp_path: Path) -> None:
    # case: a checkpoint as Dassl saves it
    file = tmp_path / "model-best.pth.tar"

    def save(content: object) -> Path:
        torch.save(content, file, _use_new_zipfile_serialization=not legacy, pickle_protocol=protocol)
        return file

    more = {"epoch": 3, "val_result": np.float64(71.5), "mean": np.zeros(3), "best": torch.tensor(71.5)}
    assert equal(save(STATE), STATE)
    assert equal(save(OrderedDict(STATE)), STATE)
    for holder in ("state_dict", "model_state_dict", "model", "module"):
        assert equal(save({holder: STATE, **more}), STATE)
    module = Small()
    assert equal(save(module), module.state_dict())
    assert equal(save({"model": module, **more}), module.state_dict())


def test_safetensors_are_known_by_what_they_hold_and_not_by_their_name(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "model.pth.tar-5")
    assert equal(tmp_path / "model.pth.tar-5", {"a": torch.ones(2)})
    torch.save({"a": torch.ones(2)}, tmp_path / "model.safetensors")
    assert equal(tmp_path / "model.safetensors", {"a": torch.ones(2)})


def test_a_torchscript_archive_equals_its_state_dict_and_its_code_is_not_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # case: OpenAI's `ViT-B-32.pt`, a TorchScript archive, as `checkpoint=`
    module = Small().eval()
    module.mask = torch.ones(4, 4)  # a tensor that is neither parameter nor buffer
    file = tmp_path / "scripted.pt"
    torch.jit.save(torch.jit.trace(module, torch.ones(2, 3)), file)
    with zipfile.ZipFile(file) as archive, zipfile.ZipFile(tmp_path / "other.pt", "w") as other:
        for info in archive.infolist():
            content = archive.read(info)
            if info.filename.endswith(".py"):
                content += b"\nimport os\nos.mkdir('something-ran')\nthis is no code at all"
            other.writestr(info.filename, content)
    with monkeypatch.context() as patch:
        patch.setattr(torch.jit, "load", None)
        patch.setattr(torch, "load", None)
        assert equal(file, module.state_dict())
        assert equal(tmp_path / "other.pt", module.state_dict())
    with pytest.raises(RuntimeError):
        torch.jit.load(tmp_path / "other.pt")


# Hostile files


class Payload:
    """What unpickling would call."""

    def __init__(self, call: Callable, *arguments: object):
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> tuple[Callable, tuple]:
        return self.call, self.arguments


@pytest.fixture
def hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """Objects whose unpickling leaves a marker in the current folder or imports ``left_a_marker``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    code = "open('marker', 'w').close()"
    Path("left_a_marker.py").write_text(
        "class Thing:\n"
        "    def __setstate__(self, state):\n        " + code + "\n"
        "    def __reduce__(self):\n        return Thing, (), {'a': 1}\n"
    )
    thing = importlib.import_module("left_a_marker").Thing()
    with Path("left_a_marker.py").open("a") as file:
        file.write(code + "\n")
    objects = {
        "system": Payload(os.system, "touch marker"),
        "mkdir": Payload(os.mkdir, "marker"),
        "eval": Payload(eval, code),
        "exec": Payload(exec, code),
        "import": Payload(importlib.import_module, "left_a_marker"),
        "hub": Payload(torch.hub.load, ".", "left_a_marker"),
        "rebuild": Payload(copyreg._reconstructor, type(thing), object, None),
        "setstate": thing,
        "partial": Payload(functools.partial, os.mkdir, "marker"),
    }
    return objects


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_a_hostile_checkpoint_stays_inert(legacy: bool, hostile: dict[str, object], tmp_path: Path) -> None:
    # case: a checkpoint as Dassl saves it
    ctx = torch.ones(4, 64)
    files = []
    for kind, payload in hostile.items():
        contents = [
            {"state_dict": {"ctx": ctx, "more": payload}, "epoch": payload, "optimizer": {"state": [payload]}},
            {"scheduler": {"successor": payload}, "state_dict": OrderedDict(ctx=ctx), "val_result": payload},
            {"state_dict": {"ctx": ctx}, payload: 1, "more": (payload, {"a": {payload}})},
        ]
        for i, content in enumerate(contents):
            files.append(tmp_path / f"{kind}{i}.pth.tar")
            torch.save(content, files[-1], _use_new_zipfile_serialization=not legacy)
    sys.modules.pop("left_a_marker", None)
    before = set(sys.modules)
    for file in files:
        learner = import_checkpoint(file, "coop", small_clip(), NAMES)
        assert torch.equal(learner.prompt.ctx, ctx)
        for load in (
            lambda file=file: make("coop", init_from=str(file)),
            lambda file=file: load_clip(str(file), device="cpu"),
        ):
            with pytest.raises(VlpromptError) as error:
                load()
            assert "\n" not in str(error.value)
    for backbone in ({"checkpoint": files[0]}, {"checkpoint": files[0], "pretrained": "openai"}):
        with pytest.raises(VlpromptError, match=r"does not fit the architecture ViT-S-32-alt|unknown pretrained tag"):
            load_clip("ViT-S-32-alt", device="cpu", **backbone)
    assert set(sys.modules) == before
    assert not Path("marker").exists()
    pickle.loads(pickle.dumps(hostile["mkdir"]))
    assert Path("marker").exists()  # they would run


def test_hostile_files_of_a_saved_learner_stay_inert(hostile: dict[str, object], tmp_path: Path) -> None:
    folder = make("coop", n_ctx=4).save_pretrained(tmp_path / "learner")
    for legacy in (False, True):
        for payload in hostile.values():
            torch.save({"prompt.ctx": payload}, folder / "learner.safetensors", _use_new_zipfile_serialization=legacy)
            with pytest.raises(VlpromptError):
                load_learner(folder, clip=small_clip())
            with pytest.raises(VlpromptError):
                make("coop", n_ctx=4, init_from=str(folder))
    assert not Path("marker").exists()


MKDIR = {
    "GLOBAL REDUCE": b"cos\nmkdir\n(S'marker'\ntR.",
    "STACK_GLOBAL": b"\x80\x04\x8c\x02os\x8c\x05mkdir\x93\x8c\x06marker\x85R.",
    "INST": b"(S'marker'\nios\nmkdir\n.",
    "OBJ": b"(cos\nmkdir\nS'marker'\no.",
    "NEWOBJ": b"\x80\x02cos\nmkdir\nX\x06\x00\x00\x00marker\x85\x81.",
    "NEWOBJ_EX": b"\x80\x04cos\nmkdir\n\x8c\x06marker\x85}\x92.",
    "BUILD": b"cbuiltins\nobject\n)\x81}X\x09\x00\x00\x00__class__cos\nmkdir\nsb.",
    "EXT1": b"\x80\x02\x82\xf1X\x06\x00\x00\x00marker\x85R.",
    "EXT2": b"\x80\x02\x83\xf1\x00X\x06\x00\x00\x00marker\x85R.",
    "PERSID": b"Pmarker\n.",
}


@pytest.mark.parametrize("opcodes", MKDIR.values(), ids=MKDIR)
def test_no_opcode_reaches_an_object_of_the_interpreter(
    opcodes: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    copyreg.add_extension("os", "mkdir", 0xF1)
    try:
        pickle.loads(b"\x80\x02\x82\xf1.")  # into the cache, past ``find_class``
        value, _ = read_pickle(io.BytesIO(opcodes))
    finally:
        copyreg.remove_extension("os", "mkdir", 0xF1)
    assert isinstance(value, Inert)
    assert not Path("marker").exists()


BOMBS = {
    "memo": b"\x80\x02Nr\xff\xff\xff\xff.",
    "long text": b"\x80\x04\x8d" + struct.pack("<Q", 2**50) + b"a.",
    "long bytes": b"\x80\x05\x96" + struct.pack("<Q", 2**62) + b"a.",
    "deep key": b"\x80\x02}" + b"N" + b"\x85" * 30_000 + b"Ns.",
    "doubled key": b"\x80\x02}" + b"N" + b"2\x86" * 5_000 + b"Ns.",
    "doubled name": b"\x80\x04N" + b"2\x86" * 5_000 + b"2\x93.",
    "no start": b"R.",
    "no stop": b"\x80\x02N",
    "no pickle": b"hello",
    "mark": b"\x80\x02(.",
    "memo that is not there": b"\x80\x02h\x07.",
}


@pytest.mark.parametrize("opcodes", BOMBS.values(), ids=BOMBS)
def test_a_pickle_that_would_take_all_memory_or_time_does_not(opcodes: bytes) -> None:
    with contextlib.suppress(ValueError, MemoryError):  # what the reader of files turns into its sentence
        read_pickle(io.BytesIO(opcodes))


def archive(path: Path, pickled: bytes, compression: int = zipfile.ZIP_STORED, **members: bytes) -> Path:
    """A zip as ``torch.save`` lays it out, with one storage of four numbers."""
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, content in {"data.pkl": pickled, "data/0": bytes(16), "version": b"3\n", **members}.items():
            file.writestr(f"archive/{name}", content)
    return path


def tensor(size: tuple, stride: tuple, offset: object = 0, count: object = 4, kind: str = "FloatStorage") -> bytes:
    """A pickle of {"ctx": tensor} with that layout, protocol 0 and by hand."""

    def ints(values: tuple) -> bytes:
        return b"(" + b"".join(f"L{v}L\n".encode() if isinstance(v, int) else b"N" for v in values) + b"t"

    reference = b"(S'storage'\nctorch\n" + kind.encode() + b"\nS'0'\nS'cpu'\n" + ints((count,))[1:-1] + b"tQ"
    call = b"ctorch._utils\n_rebuild_tensor_v2\n(" + reference + ints((offset,))[1:-1] + ints(size) + ints(stride)
    return b"\x80\x02}S'ctx'\n" + call + b"I00\nccollections\nOrderedDict\n)RtRs."


@pytest.mark.parametrize(
    ("pickled", "message"),
    [
        (tensor((5,), (1,)), "ctx reaches outside of its storage"),
        (tensor((2, 2), (3, 1)), "ctx reaches outside of its storage"),
        (tensor((2,), (1,), offset=3), "ctx reaches outside of its storage"),
        (tensor((2,), (2**63,)), "ctx reaches outside of its storage"),
        (tensor((1,), (1,), offset=-1), "ctx has no proper size"),
        (tensor((-2,), (1,)), "ctx has no proper size"),
        (tensor((2,), (-1,)), "ctx has no proper size"),
        (tensor((2,), ()), "ctx has no proper size"),
        (tensor((None,), (1,)), "ctx has no proper size"),
        (tensor((1,) * 80, (1,) * 80), "ctx has no proper size"),
        (tensor((2**40,), (0,)), "claim far more numbers than the file holds"),
        (tensor((2**62, 2**62), (0, 0)), "claim far more numbers than the file holds"),
        (tensor((4,), (1,), count=5), "its storage 0 has 16 bytes, and 20 are declared"),
        (tensor((4,), (1,), count=2**70), "its storage 0 has 16 bytes"),
        (tensor((4,), (1,), count=-4), "a storage of a kind that is not read"),
        (tensor((4,), (1,), kind="QInt8Storage"), "a storage of a kind that is not read (torch.QInt8Storage)"),
        (tensor((4,), (1,)).replace(b"_rebuild_tensor_v2", b"_rebuild_qtensor"), "is a tensor of a kind that is not"),
        (tensor((4,), (1,)).replace(b"S'0'", b"S'../../x'"), "it lacks its member data/../../x"),
        (tensor((4,), (1,))[:-9], "cannot be read as plain tensors"),
    ],
)
def test_sizes_are_held_to_what_the_file_holds(pickled: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(VlpromptError) as error:
        read_tensor_file(archive(tmp_path / "model.pt", pickled))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_layout_by_hand_is_read() -> None:
    """So that the refusals above are for their own reasons."""
    value, references = read_pickle(io.BytesIO(tensor((4,), (1,))))
    assert isinstance(value["ctx"], Inert)
    assert len(references) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "fetch the file itself with git lfs pull"),
        (b"\n<!DOCTYPE html><html>", "it is a web page"),
        (b"root:x:0:0", "neither safetensors nor what torch.save or TorchScript writes"),
        (pickle.dumps({"ctx": 1}), "a pickle that torch.save did not write"),
        (pickle.dumps(0x1950A86A20F9469CFC6C) + pickle.dumps(1001) + pickle.dumps({}), "big-endian"),
        (b"PK\x03\x04", "cannot be read as plain tensors"),
    ],
)
def test_what_is_no_checkpoint_is_told_in_one_sentence(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "model.pth.tar-50").write_bytes(content)
    with pytest.raises(VlpromptError) as error:
        read_tensor_file(tmp_path / "model.pth.tar-50")
    assert message in str(error.value)
    with pytest.raises(VlpromptError, match=r"is a folder: give a file in it, such as model\.pth\.tar-50"):
        read_tensor_file(tmp_path)


def test_archives_that_unpack_to_much_or_hold_no_state_are_refused(tmp_path: Path) -> None:
    bomb = archive(tmp_path / "bomb.pt", tensor((4,), (1,)), zipfile.ZIP_DEFLATED, byteorder=bytes(2**24))
    with pytest.raises(VlpromptError, match="unpacks to more than the file may hold"):
        read_tensor_file(bomb)
    with pytest.raises(VlpromptError, match="its numbers are big-endian"):
        read_tensor_file(archive(tmp_path / "big.pt", tensor((4,), (1,)), byteorder=b"big"))
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as other:
        other.writestr("a.txt", "b")
    with pytest.raises(VlpromptError, match="a zip that torch did not write"):
        read_tensor_file(tmp_path / "other.zip")


@pytest.mark.parametrize("kind", ["zip", "legacy", "scripted"])
def test_damage_is_one_sentence_and_never_other_numbers_where_there_is_a_checksum(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "model.pt"
    if kind == "scripted":
        torch.jit.save(torch.jit.script(Small()), file)
    else:
        content = {"state_dict": {"a": torch.ones(20, 3), "b": torch.ones(5).half()}, "v": np.float64(1)}
        torch.save(content, file, _use_new_zipfile_serialization=kind == "zip")
    whole, (expected, _), generator = file.read_bytes(), read_tensor_file(file), random.Random(0)
    refused = 0
    for _ in range(150):
        damaged = bytearray(whole)
        if generator.random() < 0.2:
            damaged = damaged[: generator.randrange(len(whole))]
        else:
            damaged[generator.randrange(len(whole))] ^= 1 << generator.randrange(8)
        file.write_bytes(damaged)
        try:
            found, _ = read_tensor_file(file)
        except VlpromptError:
            refused += 1
        else:
            same = found.keys() == expected.keys() and all(torch.equal(found[k], v) for k, v in expected.items())
            assert same or kind == "legacy"  # which has no checksums
    assert refused > 25
