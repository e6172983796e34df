"""Files with a hash of their content: safetensors with one in the header, and JSON with one as a field.

The hash reveals flipped bits, incomplete copies and files of another run; it does not prove who wrote a file. Files of
vlprompt 0.1.0, which have no hash, are accepted.
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
    """Return the fields of a JSON file with an additional last field ``sha256``, the hash of all others."""
    content: dict[str, Any] = json.loads(json.dumps({key: value for key, value in fields.items() if key != SEAL}))
    return content | {SEAL: _hash_of(content)}


def unseal(fields: Mapping[str, Any], path: Path, required: bool = False) -> dict[str, Any]:
    """Verify the hash in a JSON file's fields, and return them without it.

    Args:
        fields: the file's fields.
        path: the file, for messages.
        required: whether there must be a hash.

    Raises:
        VlpromptError: a field was changed, or the hash is missing although required.
    """
    content = {key: value for key, value in fields.items() if key != SEAL}
    if SEAL not in fields and required:
        raise VlpromptError(f"{path} is damaged: it lacks the field '{SEAL}'")
    if SEAL in fields and fields[SEAL] != _hash_of(content):
        raise VlpromptError(f"{path} was changed since vlprompt wrote it: its fields have another {SEAL}; restore it")
    return content


def _hash_of(content: Mapping[str, Any]) -> str:
    """SHA-256 of JSON values, independent of their order and spacing in the file."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def write_tensors(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, str] | None = None) -> str:
    """Write a safetensors file atomically, with the hash of its content in its header, and return the hash.

    Args:
        path: the file.
        tensors: tensors by name, on any device.
        facts: additional entries of the header.
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
    """Read a safetensors file and verify its hash.

    Args:
        path: the file.
        what: the kind of file, for error messages.
        remedy: what to do if it is damaged, for error messages.
        sha256: the expected hash, from another file; None checks only the one in the file's own header, if any.

    Returns:
        Tensors by name, and the entries of the header, including ``TENSOR_SEAL`` if the file has a hash.

    Raises:
        VlpromptError: the file is missing or damaged, or it is not the expected one.
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
    """SHA-256 of the names, dtypes, shapes and values of tensors and of a header's entries."""
    digest = hashlib.sha256(json.dumps(dict(facts or {}), sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
