"""Files that show when they were changed: tensors with a hash in their header, and JSON that has one of itself.

The hash tells a flipped bit, a half-written copy and a file of another run; it does not tell who wrote a file. Files
that were written before hashes, by vlprompt 0.1.0, are taken as they are.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vlprompt.base.files import atomic_write
from vlprompt.errors import VlpromptError, first_line

SEAL = "sha256"  # the field of a JSON file
TENSOR_SEAL = "vlprompt.sha256"  # the entry of a safetensors header


def seal(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a JSON file with ``sha256``, the hash of all others, as their last."""
    content: dict[str, Any] = json.loads(json.dumps({key: value for key, value in fields.items() if key != SEAL}))
    return content | {SEAL: _hash_of(content)}


def unseal(fields: Mapping[str, Any], path: Path, required: bool = False) -> dict[str, Any]:
    """Return the fields of a JSON file without their hash, which must be theirs where there is one.

    Args:
        fields: of the file.
        path: of the file.
        required: whether there must be one.

    Raises:
        VlpromptError: a field is not what it was when the file was written.
    """
    content = {key: value for key, value in fields.items() if key != SEAL}
    if SEAL not in fields and required:
        raise VlpromptError(f"{path} is damaged: it lacks the field '{SEAL}'")
    if SEAL in fields and fields[SEAL] != _hash_of(content):
        raise VlpromptError(f"{path} was changed since vlprompt wrote it: its fields have another {SEAL}; restore it")
    return content


def _hash_of(content: Mapping[str, Any]) -> str:
    """SHA-256 of JSON values, whatever their order and spacing in the file."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def write_tensors(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, str] | None = None) -> str:
    """Write a safetensors file atomically, with the hash of its content in its header, and return the hash.

    Args:
        path: the file.
        tensors: by name, on any device.
        facts: more entries of the header.
    """
    facts = dict(facts or {})
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    found = hash_of_tensors(tensors, facts)
    with atomic_write(path) as temporary:
        save_file(tensors, temporary, facts | {TENSOR_SEAL: found})
    return found


def read_tensors(
    path: Path, what: str, remedy: str, sha256: str | None = None
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file whole and check it.

    Args:
        path: the file.
        what: it is, for the sentence that says it is damaged.
        remedy: what to do then.
        sha256: the hash that the file beside it says it has; None asks for the one in its own header alone.

    Returns:
        Tensors by name, and the entries of the header; ``TENSOR_SEAL`` is among them if it was compared.

    Raises:
        VlpromptError: it cannot be read, its content is not what was written, or it is another file.
    """
    if not path.is_file():
        raise VlpromptError(f"{what} {path} {'is no plain file' if path.exists() else 'is missing'}: {remedy}")
    try:
        with safe_open(path, "pt") as file:
            facts = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no mapping
    except (SafetensorError, OSError, ValueError) as error:
        raise VlpromptError(f"{what} {path} is damaged ({first_line(error)}): {remedy}") from error
    written = facts.get(TENSOR_SEAL)
    if written is not None or sha256:
        found = hash_of_tensors(tensors, {key: value for key, value in facts.items() if key != TENSOR_SEAL})
        if written not in (None, found):
            raise VlpromptError(f"{what} {path} is damaged (its content is not what its checksum says): {remedy}")
        if sha256 not in (None, found):
            raise VlpromptError(f"{what} {path} is not what the file beside it describes (its checksum): {remedy}")
    return tensors, facts


def hash_of_tensors(tensors: Mapping[str, Tensor], facts: Mapping[str, str] | None = None) -> str:
    """SHA-256 over names, kinds, shapes and numbers of tensors, and over a header's entries."""
    digest = hashlib.sha256(json.dumps(dict(facts or {}), sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
