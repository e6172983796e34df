"""Feature banks that may be larger than memory: one file, written shard by shard and memory-mapped.

The file is plain safetensors with one tensor, ``features`` (V, N, D). A record beside it lists the SHA-256 of each
shard that was written. A shard that is not listed, or whose checksum differs, is computed (again), so interrupted work
continues with the missing shards.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlprompt.base.files import atomic_write, locked, remove_leftovers, writing
from vlprompt.base.sealed import seal, unseal
from vlprompt.errors import VlpromptError, warn

FORMAT = "vlprompt-shards/1"
SUFFIX = ".shards.safetensors"
BLOCK = 1 << 20  # bytes that are hashed at a time
# Without this flag, Linux reserves memory for all of a private mapping, as if all of it could be written to.
NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)

_intact: dict[Path, tuple[int, ...]] = {}  # complete files whose checksums this process has verified


@dataclass(frozen=True)
class Shard:
    """Rows ``start`` to ``stop`` (exclusive) of one view."""

    number: int
    view: int
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


Encode = Callable[[Sequence[Shard]], Iterable[tuple[Shard, Tensor]]]  # from shards to features (n, D), in any order


class ShardedFile:
    """Features (V, N, D) float32 on disk.

    Args:
        path: the file, which need not exist yet.
        key: hash of everything that the features depend on.
        shape: V and N.
        rows: images per shard; an existing record overrides it.
    """

    def __init__(self, path: Path, key: str, shape: tuple[int, int], rows: int):
        self.path, self.key, self.shape, self.rows = path, key, shape, rows
        self.width = 0  # D, known from the first shard on
        self.sums: dict[int, str] = {}  # SHA-256 of each shard, by number
        self._read_record()

    @property
    def record(self) -> Path:
        """The file with the checksums."""
        return self.path.with_suffix(".json")

    @property
    def shards(self) -> list[Shard]:
        """All shards, view by view."""
        views, images = self.shape
        places = [(view, start) for view in range(views) for start in range(0, images, self.rows)]
        return [Shard(i, view, start, min(start + self.rows, images)) for i, (view, start) in enumerate(places)]

    @property
    def is_whole(self) -> bool:
        """Whether all shards are written."""
        return len(self.sums) == len(self.shards) and self.path.exists()

    def complete(self, encode: Encode) -> Tensor:
        """Compute the shards that are missing or damaged, and return all features (V, N, D), memory-mapped.

        If several processes call this at once, one encodes and the others wait.

        Args:
            encode: from shards to their features.

        Raises:
            VlpromptError: raised by ``encode``, in which case the shards made before are kept; or the file cannot be
                written.
        """
        if not self.is_whole or self._damaged():
            with locked(self.path.parent / f".{self.path.stem}.lock"):
                self._read_record()  # another process may have written shards meanwhile
                remove_leftovers(self.path.parent, self.record.name)
                self._forget(self._damaged())
                missing = [shard for shard in self.shards if shard.number not in self.sums]
                for shard, features in encode(missing) if missing else ():
                    self._write(shard, features)
        if not self.is_whole:
            raise VlpromptError(f"the feature bank {self.path} is not complete: run the same command again")
        return self._mapped()

    def _read_record(self) -> None:
        """Read which shards are written; a record that is damaged or of other features is ignored."""
        self.sums = {}
        with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            record = unseal(json.loads(self.record.read_text(encoding="utf-8")), self.record, required=True)
            if (record["format"], record["key"], record["shape"]) == (FORMAT, self.key, list(self.shape)):
                self.rows, self.width = int(record["rows"]), int(record["width"])
                self.sums = {int(number): sha256 for number, sha256 in record["sums"].items()}

    def _write_record(self) -> None:
        """Write which shards are written, with their checksums."""
        facts = {"format": FORMAT, "key": self.key, "shape": list(self.shape), "rows": self.rows, "width": self.width}
        text = json.dumps(seal(facts | {"sums": {str(number): self.sums[number] for number in sorted(self.sums)}}))
        with atomic_write(self.record) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")

    def _damaged(self) -> list[Shard]:
        """Shards whose checksums do not match; a complete file is verified once per process."""
        state = self._state()
        if state is not None and _intact.get(self.path) == state:
            return []
        damaged = [shard for shard in self.shards if shard.number in self.sums and not self._matches(shard)]
        if self.is_whole and not damaged and state is not None:
            _intact[self.path] = state
        return damaged

    def _forget(self, damaged: Sequence[Shard]) -> None:
        """Mark damaged shards as missing, with a warning."""
        if damaged:
            count = f"{len(damaged)} of {len(self.shards)} shards of the feature bank {self.path}"
            warn(f"{count} are damaged, the first is {damaged[0].number}: they are computed again")
        for shard in damaged:
            del self.sums[shard.number]

    def _state(self) -> tuple[int, ...] | None:
        """Inode, size and modification time of both files, to notice changes; None if one is missing."""
        with suppress(OSError):
            files = [self.path.stat(), self.record.stat()]
            return tuple(n for each in files for n in (each.st_ino, each.st_size, each.st_mtime_ns))
        return None

    def _matches(self, shard: Shard) -> bool:
        """Compare a shard with its checksum, reading it in blocks; a mapping would keep it in memory."""
        digest, left = hashlib.sha256(), self._bytes(len(shard))
        with suppress(OSError), open(self.path, "rb") as file:
            file.seek(self._offset(shard))
            while left and (block := file.read(min(BLOCK, left))):
                digest.update(block)
                left -= len(block)
        return not left and digest.hexdigest() == self.sums[shard.number]

    def _bytes(self, rows: int) -> int:
        """Size of some rows in the file."""
        return rows * self.width * torch.float32.itemsize

    def _header(self) -> bytes:
        """What precedes the numbers in a safetensors file: the header's length, and the header as JSON."""
        views, images = self.shape
        features = {
            "dtype": "F32",
            "shape": [views, images, self.width],
            "data_offsets": [0, self._bytes(views * images)],
        }
        text = json.dumps({"__metadata__": {"format": FORMAT, "key": self.key}, "features": features}).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text

    def _offset(self, shard: Shard) -> int:
        """Position of a shard in the file, in bytes."""
        return len(self._header()) + self._bytes(shard.view * self.shape[1] + shard.start)

    def _write(self, shard: Shard, features: Tensor) -> None:
        """Write the features (n, D) of a shard, and then list it in the record."""
        content = features.contiguous().numpy()
        if not self.sums:
            self.width = features.shape[1]
            self._create()
        if content.shape != (len(shard), self.width) or content.dtype != "float32":
            raise VlpromptError(f"shard {shard.number} of {self.path} has features {content.dtype} {content.shape}")
        with writing(self.path), open(self.path, "r+b") as file:
            file.seek(self._offset(shard))
            file.write(content.data)
        self.sums[shard.number] = hashlib.sha256(content.data).hexdigest()
        self._write_record()

    def _create(self) -> None:
        """Create the file at its full size; unwritten parts take no space on most file systems."""
        header = self._header()
        with atomic_write(self.path) as temporary, open(temporary, "wb") as file:
            file.write(header)
            file.truncate(len(header) + self._bytes(self.shape[0] * self.shape[1]))

    def _mapped(self) -> Tensor:
        """Memory-map the features (V, N, D); writing to the tensor does not change the file."""
        views, images = self.shape
        private: dict[str, Any] = {"access": mmap.ACCESS_COPY}
        if hasattr(mmap, "MAP_PRIVATE"):
            private = {"flags": mmap.MAP_PRIVATE | NORESERVE, "prot": mmap.PROT_READ | mmap.PROT_WRITE}
        with open(self.path, "rb") as file:
            content = mmap.mmap(file.fileno(), 0, **private)
        numbers = torch.frombuffer(
            content, dtype=torch.float32, count=views * images * self.width, offset=len(self._header())
        )
        return numbers.view(views, images, self.width)
