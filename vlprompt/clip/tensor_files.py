"""Reads tensors from files of weights: safetensors, and files written by ``torch.save`` or TorchScript.

Nothing in a file is executed, imported or compiled. Safetensors contain only numbers, and a pickle is read as data
(``inert_pickle``): its records of calls of torch's rebuilding functions say which bytes of which storage form a tensor.
Optimizers, schedulers and other objects next to the weights are ignored. Sizes, strides and offsets are compared with
the bytes that exist, so that a file cannot allocate more memory than it fills.
"""

from __future__ import annotations

import math
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeGuard, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vlprompt.clip.inert_pickle import Inert, read_pickle
from vlprompt.errors import VlpromptError

HOLDERS = ("state_dict", "model_state_dict", "model", "module", "net")  # keys of the weights in trainers' checkpoints
LEGACY_MAGIC, LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
SPARE = 8  # tensors may have this many times the file's bytes: some checkpoints have a module under several names
MAX_CLASS = 2**16  # characters of a TorchScript class that are searched for its lists of tensors
MAX_NAMES = 100_000  # tensors and modules in a file; OpenCLIP's largest model has a few thousand
DTYPES = {
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.FloatStorage": torch.float32,
    "torch.DoubleStorage": torch.float64,
    "torch.BoolStorage": torch.bool,
    "torch.ByteStorage": torch.uint8,
    "torch.CharStorage": torch.int8,
    "torch.ShortStorage": torch.int16,
    "torch.IntStorage": torch.int32,
    "torch.LongStorage": torch.int64,
    "torch.ComplexFloatStorage": torch.complex64,
    "torch.ComplexDoubleStorage": torch.complex128,
}
DAMAGE = (ValueError, OSError, EOFError, MemoryError, RuntimeError, zipfile.BadZipFile, zlib.error, struct.error)
ReadStorage = Callable[[str, int], bytearray]  # key, expected number of bytes -> the bytes
Declared = Callable[[str], "set[str] | None"]  # class of a module -> names of its parameters and buffers, if known


def read_tensor_file(path: Path) -> tuple[dict[str, Tensor], bool]:
    """Read the state dict in a file, to the CPU, and return whether the file is a TorchScript archive.

    Args:
        path: safetensors; a state dict, a dictionary that contains one, or a whole module, in either format of
            ``torch.save``; or a TorchScript archive. The format is recognised by the content, not by the name.

    Raises:
        VlpromptError: the file is missing, damaged or in another format, or it contains no tensors.
    """
    if path.is_dir():
        files = (p.name for p in path.iterdir() if p.is_file())
        found = sorted(name for name in files if re.search(r"\.(safetensors|pt|pth|bin)\b", name))
        raise VlpromptError(f"{path} is a folder: give a file in it" + (f", such as {found[-1]}" if found else ""))
    if not path.is_file():
        raise VlpromptError(f"no checkpoint at {path}")
    try:
        tensors, scripted = _read(path)
    except SafetensorError as error:
        raise VlpromptError(f"{path} is not a readable safetensors file: {error}") from error
    except DAMAGE as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise VlpromptError(f"{path} cannot be read as plain tensors: {reason}") from error
    if not tensors:
        raise VlpromptError(f"{path} holds no state dict: it has no tensors by name")
    return tensors, scripted


def _read(path: Path) -> tuple[dict[str, Tensor], bool]:
    with open(path, "rb") as file:
        start = file.read(64)
    if start.startswith(b"PK\x03\x04"):
        return _read_zip(path)
    if start[8:9] == b"{":
        return load_file(path), False
    if start.startswith(b"\x80"):
        return _read_legacy(path), False
    if start.startswith(b"version https://git-lfs"):
        raise ValueError("it is a Git LFS pointer, so fetch the file itself with git lfs pull")
    if start.lstrip().startswith(b"<"):
        raise ValueError("it is a web page, so download the file itself")
    raise ValueError("it is neither safetensors nor what torch.save or TorchScript writes" if start else "it is empty")


# The zip format of torch.save and TorchScript


class _Archive:
    """Members of a zip written by torch, within a limit on their total size: torch compresses only code."""

    def __init__(self, archive: zipfile.ZipFile, size: int):
        self.archive, self.left = archive, SPARE * size
        roots = [name for name in archive.namelist() if re.fullmatch(r"[^/]+/data\.pkl", name)]
        if len(roots) != 1:
            raise ValueError("it is a zip that torch did not write, without one data.pkl")
        self.root = roots[0].removesuffix("data.pkl")

    def __contains__(self, name: str) -> bool:
        return self.root + name in self.archive.NameToInfo

    def read(self, name: str) -> bytearray:
        """The bytes of a member, whose checksum is verified."""
        if name not in self:
            raise ValueError(f"it lacks its member {name[:100]}")
        info = self.archive.getinfo(self.root + name)
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"its member {name[:100]} is compressed as torch never does")
        self.left -= info.file_size
        if self.left < 0:
            raise ValueError(f"its member {name[:100]} unpacks to more than the file may hold")
        if info.CRC == 0:
            info.CRC = None  # type: ignore[assignment]  # torch can be told to leave checksums out
        content = bytearray(info.file_size)
        with cast(zipfile.ZipExtFile, self.archive.open(info)) as opened:  # what it returns where it reads
            if opened.readinto(content) != len(content) or opened.read(1):
                raise ValueError(f"its member {name[:100]} has another length than it says")
        return content

    def storage(self, key: str, length: int) -> bytearray:
        """The bytes of a storage; ``ValueError`` unless there are ``length`` of them."""
        content = self.read(f"data/{key}")
        if len(content) != length:
            raise ValueError(f"its storage {key[:100]} has {len(content)} bytes, and {length} are declared")
        return content

    def declared(self, module: str) -> set[str] | None:
        """Names of a TorchScript class's parameters and buffers, from its source; None if not listed."""
        folder, _, name = module.rpartition(".")
        file = f"code/{folder.replace('.', '/')}.py"
        if file not in self:
            return None
        text = self.read(file).decode(errors="replace")
        _, found, body = text.partition(f"class {name}(Module):")
        body = body[:MAX_CLASS].partition("\nclass ")[0]
        lists = re.findall(r"__(?:parameters|buffers)__ = \[([^\]]*)\]", body)
        return set(re.findall(r'"([^"]+)"', " ".join(lists))) if found and lists else None


def _read_zip(path: Path) -> tuple[dict[str, Tensor], bool]:
    with zipfile.ZipFile(path) as opened:
        archive = _Archive(opened, path.stat().st_size)
        if "byteorder" in archive and archive.read("byteorder") != b"little":
            raise ValueError("its numbers are big-endian")
        content, _ = read_pickle(BytesIO(archive.read("data.pkl")))
        scripted = "constants.pkl" in archive
        declared = cache(archive.declared) if scripted else lambda module: None
        return _build(_find_records(content, declared), archive.storage, SPARE * path.stat().st_size), scripted


# The legacy format: several pickles, then the storages


def _read_legacy(path: Path) -> dict[str, Tensor]:
    size = path.stat().st_size
    with open(path, "rb") as file:
        if read_pickle(file)[0] != LEGACY_MAGIC or read_pickle(file)[0] != LEGACY_PROTOCOL:
            raise ValueError("it is a pickle that torch.save did not write")
        system, _ = read_pickle(file)
        if not (isinstance(system, dict) and system.get("little_endian") is True):
            raise ValueError("its numbers are big-endian")
        content, references = read_pickle(file)
        keys, _ = read_pickle(file)
        storages = [reference for reference in references if _is_storage(reference)]  # others refer to source code
        places = _legacy_places(file, keys, dict(_storage(reference)[:2] for reference in storages), size)

        def read(key: str, length: int) -> bytearray:
            start, there = places.get(key, (0, -1))
            if there != length:
                raise ValueError(f"its storage {key[:100]} has another length than is declared")
            file.seek(start)
            return bytearray(file.read(length))

        return _build(_find_records(content, lambda module: None), read, SPARE * size)


def _legacy_places(file: BinaryIO, keys: Any, kinds: dict[str, torch.dtype], size: int) -> dict[str, tuple[int, int]]:
    """Offset and size in bytes of each storage; ``file`` is positioned after the list of their keys."""
    places = {}
    for key in keys if isinstance(keys, list) else ():
        count = int.from_bytes(file.read(8), "little", signed=True)
        if not isinstance(key, str) or key not in kinds or count < 0:
            raise ValueError("its list of storages is not right")
        places[key] = (file.tell(), count * kinds[key].itemsize)
        if sum(places[key]) > size:
            raise ValueError("it is cut off")
        file.seek(places[key][1], 1)
    return places


# From records to tensors


class _Layout(NamedTuple):
    """Which numbers of which storage form a tensor."""

    key: str
    dtype: torch.dtype
    length: int  # of the storage, in numbers
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


def _is_storage(reference: Any) -> bool:
    return isinstance(reference, tuple) and len(reference) >= 5 and reference[0] == "storage"


def _storage(reference: Any) -> tuple[str, torch.dtype, int, int]:
    """Key, dtype, length and first element of a reference ("storage", type, key, device, length[, view])."""
    if not _is_storage(reference):
        raise ValueError("it refers to what is no storage")
    _, kind, key, _, count, *view = reference
    name = kind.name.replace("torch.cuda.", "torch.") if isinstance(kind, Inert) else ""
    first = view[0][1] if view and isinstance(view[0], tuple) and len(view[0]) == 3 else 0
    if name not in DTYPES or not isinstance(key, str) or not _are_counts((count, first)):
        raise ValueError(f"it has a storage of a kind that is not read ({name[:100]})")
    return key, DTYPES[name], count, first


def _are_counts(values: Any) -> bool:
    return isinstance(values, tuple) and all(isinstance(v, int) and v >= 0 for v in values)


def _is_tensor(value: Any) -> TypeGuard[Inert]:
    known = ("torch._utils._rebuild_", "torch._tensor._rebuild_")
    return isinstance(value, Inert) and value.name.startswith(known) and isinstance(value.arguments, tuple)


def _layout(name: str, record: Inert) -> _Layout:
    """Interpret a record of a call of a rebuilding function; ``ValueError`` if the tensor exceeds its storage."""
    function, arguments = record.name.rpartition("._rebuild_")[2], record.arguments
    inner = arguments[0] if arguments and function in ("parameter", "parameter_with_state") else None
    if function == "from_type_v2" and len(arguments) == 4 and isinstance(arguments[0], Inert):
        inner = Inert(arguments[0].name, arguments[2])  # a tensor with attributes of its own
    if _is_tensor(inner):
        return _layout(name, inner)
    if function not in ("tensor", "tensor_v2") or len(arguments) < 4 or not isinstance(arguments[0], Inert):
        raise ValueError(f"{name[:100]} is a tensor of a kind that is not read ({record.name[:100]})")
    key, dtype, count, first = _storage(arguments[0].arguments)
    offset, size, stride = (a.arguments[0] if isinstance(a, Inert) and a.arguments else a for a in arguments[1:4])
    if not (_are_counts((offset,)) and _are_counts(size) and _are_counts(stride) and len(size) == len(stride) <= 16):
        raise ValueError(f"{name[:100]} has no proper size")
    last = first + offset + sum((s - 1) * step for s, step in zip(size, stride, strict=True))
    if 0 not in size and last >= count:
        raise ValueError(f"{name[:100]} reaches outside of its storage")
    return _Layout(key, dtype, count, first + offset, size, stride)


def _build(records: dict[str, Inert], read: ReadStorage, numbers: int) -> dict[str, Tensor]:
    """Create the tensors, which may have at most ``numbers`` bytes together; each storage is read once."""
    layouts = {name: _layout(name, record) for name, record in records.items()}
    if sum(math.prod(layout.size) * layout.dtype.itemsize for layout in layouts.values()) > numbers:
        raise ValueError("its tensors claim far more numbers than the file holds")
    storages: dict[str, Tensor] = {}
    tensors = {}
    for name, (key, dtype, count, offset, size, stride) in layouts.items():
        if 0 in size:
            tensors[name] = torch.empty(size, dtype=dtype)
            continue
        if key not in storages:
            storages[key] = torch.frombuffer(read(key, count * dtype.itemsize), dtype=torch.uint8)
        if len(storages[key]) != count * dtype.itemsize:
            raise ValueError(f"the storage of {name[:100]} has two lengths")
        tensors[name] = storages[key].view(dtype).as_strided(size, stride, offset)
    return tensors


def _find_records(content: Any, declared: Declared) -> dict[str, Inert]:
    """The records of tensors by name, in a state dict, a dictionary that contains one, or a whole module."""
    if isinstance(content, dict):
        held = (content[key] for key in HOLDERS if isinstance(content.get(key), (dict, Inert)))
        content = next((value for value in held if not _is_tensor(value)), content)
    if isinstance(content, dict):
        return {name: value for name, value in content.items() if isinstance(name, str) and _is_tensor(value)}
    records: dict[str, Inert] = {}
    for count, (name, value) in enumerate(_walk(content, "", declared, depth=0)):
        if count > MAX_NAMES:
            raise ValueError("it holds more modules than any model")
        if value is not None:
            records[name] = value
    return records


def _walk(module: Any, prefix: str, declared: Declared, depth: int) -> Iterator[tuple[str, Inert | None]]:
    """Yield a module's tensors with their dotted names, and None for each submodule."""
    yield prefix, None
    state = module.state if isinstance(module, Inert) else None
    if not isinstance(state, dict) or depth > 50:
        return
    known = declared(module.name)
    parts = [state[key] for key in ("_parameters", "_buffers", "_modules") if isinstance(state.get(key), dict)]
    for name, value in [item for part in parts or [state] for item in part.items()]:
        if _is_tensor(value):
            if known is None or name in known:
                yield f"{prefix}{name}", value
        elif isinstance(value, Inert):
            yield from _walk(value, f"{prefix}{name}.", declared, depth + 1)
