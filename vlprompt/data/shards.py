"""Features of a size that memory need not hold: one file that is made in shards, each with its checksum, and mapped.

The file is plain safetensors with one tensor, ``features`` (V, N, D). Beside it a record holds the SHA-256 of every
shard that was written. A shard that the record does not list, or whose numbers are others, is made (again): so work
that was stopped goes on at the first missing shard. Opening maps the file; its pages are read as they are asked for.
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
# A private mapping is counted against the memory that there is as if all of it were written to, unless one says no.
NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)

_intact: dict[Path, tuple[int, ...]] = {}  # complete files that this process has compared with their checksums


@dataclass(frozen=True)
class Shard:
    """Rows ``start`` to ``stop`` of a view: the images that are encoded together."""

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
        path: of the file, which need not be there.
        key: of what the features depend on.
        shape: V and N.
        rows: images of a shard; where some are there already they say themselves.
    """

    def __init__(self, path: Path, key: str, shape: tuple[int, int], rows: int):
        self.path, self.key, self.shape, self.rows = path, key, shape, rows
        self.width = 0  # D, which the first shard tells
        self.sums: dict[int, str] = {}  # SHA-256 by number
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
        """Whether all shards were written."""
        return len(self.sums) == len(self.shards) and self.path.exists()

    def completed(self, encode: Encode) -> Tensor:
        """Return the features, mapped, after ``encode`` has made the shards that are missing or damaged.

        Of several processes that ask for them at once one encodes, and the others wait for it.

        Raises:
            VlpromptError: by ``encode``, after which the shards that were made until then are kept; or the file cannot
                be written.
        """
        if not self.is_whole or self._damaged():
            with locked(self.path.parent / f".{self.path.stem}.lock"):
                self._read_record()  # another process may have been at it meanwhile
                remove_leftovers(self.path.parent, self.record.name)
                self._forget(self._damaged())
                missing = [shard for shard in self.shards if shard.number not in self.sums]
                for shard, features in encode(missing) if missing else ():
                    self._write(shard, features)
        if not self.is_whole:
            raise VlpromptError(f"the feature bank {self.path} is not complete: run the same command again")
        return self._mapped()

    def _read_record(self) -> None:
        """Take over what the record says; one that is damaged or of other features says nothing."""
        self.sums = {}
        with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            found = unseal(json.loads(self.record.read_text(encoding="utf-8")), self.record, required=True)
            if (found["format"], found["key"], found["shape"]) == (FORMAT, self.key, list(self.shape)):
                self.rows, self.width = int(found["rows"]), int(found["width"])
                self.sums = {int(number): sha256 for number, sha256 in found["sums"].items()}

    def _write_record(self) -> None:
        facts = {"format": FORMAT, "key": self.key, "shape": list(self.shape), "rows": self.rows, "width": self.width}
        text = json.dumps(seal(facts | {"sums": {str(number): self.sums[number] for number in sorted(self.sums)}}))
        with atomic_write(self.record) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")

    def _damaged(self) -> list[Shard]:
        """Shards whose numbers are not those that were written; a complete file is read once a process for it."""
        state = self._state()
        if state is not None and _intact.get(self.path) == state:
            return []
        damaged = [shard for shard in self.shards if shard.number in self.sums and not self._matches(shard)]
        if self.is_whole and not damaged and state is not None:
            _intact[self.path] = state
        return damaged

    def _forget(self, damaged: Sequence[Shard]) -> None:
        """Count shards as not made, and say so."""
        if damaged:
            of = f"{len(damaged)} of {len(self.shards)} shards of the feature bank {self.path}"
            warn(f"{of} are damaged, the first is {damaged[0].number}: they are computed again")
        for shard in damaged:
            del self.sums[shard.number]

    def _state(self) -> tuple[int, ...] | None:
        with suppress(OSError):
            files = [self.path.stat(), self.record.stat()]
            return tuple(n for each in files for n in (each.st_ino, each.st_size, each.st_mtime_ns))
        return None

    def _matches(self, shard: Shard) -> bool:
        """Compare a shard with its checksum, through a small buffer: what is mapped would stay in memory."""
        digest, left = hashlib.sha256(), self._bytes(len(shard))
        with suppress(OSError), open(self.path, "rb") as file:
            file.seek(self._place(shard))
            while left and (block := file.read(min(BLOCK, left))):
                digest.update(block)
                left -= len(block)
        return not left and digest.hexdigest() == self.sums[shard.number]

    def _bytes(self, rows: int) -> int:
        return rows * self.width * torch.float32.itemsize

    def _header(self) -> bytes:
        views, images = self.shape
        features = {
            "dtype": "F32",
            "shape": [views, images, self.width],
            "data_offsets": [0, self._bytes(views * images)],
        }
        text = json.dumps({"__metadata__": {"format": FORMAT, "key": self.key}, "features": features}).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text

    def _place(self, shard: Shard) -> int:
        """The byte at which a shard begins."""
        return len(self._header()) + self._bytes(shard.view * self.shape[1] + shard.start)

    def _write(self, shard: Shard, features: Tensor) -> None:
        content = features.contiguous().numpy()
        if not self.sums:
            self.width = features.shape[1]
            self._begin()
        if content.shape != (len(shard), self.width) or content.dtype != "float32":
            raise VlpromptError(f"shard {shard.number} of {self.path} has features {content.dtype} {content.shape}")
        with writing(self.path), open(self.path, "r+b") as file:
            file.seek(self._place(shard))
            file.write(content.data)
        self.sums[shard.number] = hashlib.sha256(content.data).hexdigest()
        self._write_record()  # from here on the shard counts

    def _begin(self) -> None:
        """Make the file, as long as it will be; what is not written yet takes no room on most file systems."""
        header = self._header()
        with atomic_write(self.path) as temporary, open(temporary, "wb") as file:
            file.write(header)
            file.truncate(len(header) + self._bytes(self.shape[0] * self.shape[1]))

    def _mapped(self) -> Tensor:
        """The features (V, N, D); what is written into them stays in this process."""
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
