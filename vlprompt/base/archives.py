"""Unpacks archives that may come from anyone: completely or not at all, within their folder, up to a maximum size."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Protocol

from vlprompt.base.files import is_relative_inside
from vlprompt.errors import VlpromptError

ALLOWANCE = 256 * 2**20  # bytes that any archive may unpack to
RATIO = 50  # larger ones: up to this many times the archive's size; images are hardly compressed, texts to a tenth
MAX_BYTES, MAX_MEMBERS = 2**40, 10_000_000  # ImageNet has a sixth of each
LEFTOVERS = ".unpack-"  # prefix of temporary folders, which a killed process may leave
OTHERS = {b"Rar!": "RAR", b"7z\xbc\xaf": "7z", b"<!do": "web page", b"<htm": "web page", b"<?xm": "web page"}
OPENERS: dict[bytes, Callable[[Path], _Raw]] = {
    b"\x1f\x8b": gzip.GzipFile,
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ": lzma.LZMAFile,
}
DAMAGE = (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, lzma.LZMAError, NotImplementedError, ValueError)


class Budget:
    """Counts down the bytes and members that an archive may still unpack to."""

    def __init__(self, archive: Path, limit: int = MAX_BYTES):
        self.archive = archive
        self.limit = min(limit, max(ALLOWANCE, RATIO * archive.stat().st_size))
        self.bytes, self.members = self.limit, MAX_MEMBERS

    def take(self, count: int) -> None:
        """Count a member of ``count`` bytes; raises ``VlpromptError`` if the archive becomes too large."""
        self.bytes -= count
        self.members -= 1
        if self.bytes < 0 or self.members < 0:
            raise self.refusal()

    def refusal(self) -> VlpromptError:
        """The error for an archive that is too large."""
        return VlpromptError(
            f"refused the archive {self.archive} of {self.archive.stat().st_size:,} bytes: it unpacks to more than "
            f"{self.limit:,} ({RATIO} times its size, or {ALLOWANCE >> 20} MB) or to more than {MAX_MEMBERS:,} files; "
            "unpack it by hand if you trust it"
        )


def extract(archive: str | Path, folder: str | Path, limit: int = MAX_BYTES) -> Budget:
    """Unpack a zip or tar archive, compressed or not, into a folder; its first bytes determine the format.

    Nothing is written into the folder if the archive is refused.

    Args:
        archive: the file.
        folder: created if necessary; existing files are replaced by those of the same name.
        limit: maximum number of bytes to unpack.

    Returns:
        The budget, with the bytes and members that were left.

    Raises:
        VlpromptError: a member is unsafe (a path out of the folder, a link or a device), the archive is damaged or
            encrypted, or it unpacks to more than ``limit`` or than ``ALLOWANCE`` and ``RATIO`` allow.
    """
    archive, folder = Path(archive), Path(folder)
    with open(archive, "rb") as file:
        start = file.read(6)
    other = OTHERS.get(start[:4].lower(), OTHERS.get(start[:4]))
    if other:
        cure = "delete it and get it again" if other == "web page" else "unpack it by hand"
        raise VlpromptError(f"{archive} is a {other} and neither a zip nor a tar archive: {cure}")
    budget = Budget(archive, limit)
    is_tar = start.startswith(tuple(OPENERS)) or archive.suffix.lower() != ".zip" or tarfile.is_tarfile(archive)
    is_zip = start.startswith(b"PK") or not is_tar
    with _whole(archive, "zip" if is_zip else "tar"), _beside(folder) as temporary:
        (_unpack_zip if is_zip else _unpack_tar)(archive, temporary, budget)
        _move(temporary, folder)
    return budget


@contextmanager
def _whole(archive: Path, kind: str) -> Iterator[None]:
    """Turn errors for damaged archives, and the system's errors such as a full disk, into one sentence."""
    try:
        yield
    except VlpromptError:
        raise
    except (*DAMAGE, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise VlpromptError(f"{archive} cannot be unpacked: {error.strerror}") from error
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise VlpromptError(
            f"{archive} is not a whole {kind} archive ({reason}): delete it and get it again"
        ) from error


@contextmanager
def _beside(folder: Path) -> Iterator[Path]:
    """A temporary folder on the same file system as ``folder``."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=LEFTOVERS, ignore_cleanup_errors=True) as temporary:
        content = Path(temporary, "content")
        content.mkdir()
        yield content


def _move(source: Path, target: Path) -> None:
    """Move the content of a folder into another, merging folders that exist in both."""
    if not target.exists():
        os.replace(source, target)
        return
    for entry in source.iterdir():
        place = target / entry.name
        if entry.is_dir() and place.is_dir():
            _move(entry, place)
        else:
            os.replace(entry, place)


def _check_name(archive: Path, name: str) -> None:
    if not is_relative_inside(name) and name not in (".", "./"):
        raise VlpromptError(f"refused the archive {archive}: its member {name!r:.100} is unsafe")


def _unpack_zip(archive: Path, folder: Path, budget: Budget) -> None:
    with zipfile.ZipFile(archive) as opened:
        for member in opened.infolist():
            _check_name(archive, member.filename)
            if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise VlpromptError(f"refused the archive {archive}: its member '{member.filename}' is no plain file")
            if member.flag_bits & 0x1:
                raise VlpromptError(f"{archive} is encrypted: unpack it by hand, with its password")
            budget.take(member.file_size)  # zipfile reads no more than this of a member
        opened.extractall(folder)


def _unpack_tar(archive: Path, folder: Path, budget: Budget) -> None:
    with open(archive, "rb") as file:
        start = file.read(6)
    opener = next((opener for magic, opener in OPENERS.items() if start.startswith(magic)), _plain)
    with closing(opener(archive)) as raw, _open_tar(_Bounded(raw, budget)) as opened:
        for member in opened:
            _check_name(archive, member.name)
            if not (member.isreg() or member.isdir()) or member.issparse():
                raise VlpromptError(f"refused the archive {archive}: its member '{member.name}' is no plain file")
            budget.take(member.size)
            opened.extract(member, folder)


def _plain(archive: Path) -> _Raw:
    return open(archive, "rb")


def _open_tar(stream: _Bounded) -> tarfile.TarFile:
    opened = tarfile.TarFile(fileobj=stream)  # type: ignore[arg-type]  # it has read, seek and tell, which is all that is used
    if hasattr(tarfile, "data_filter"):  # in recent security releases of Python, as a second check
        opened.extraction_filter = tarfile.data_filter
    return opened


class _Raw(Protocol):
    """A stream of a tar archive's decompressed bytes."""

    def read(self, count: int, /) -> bytes: ...

    def seek(self, position: int, whence: int, /) -> int: ...

    def tell(self) -> int: ...

    def close(self) -> None: ...


class _Bounded:
    """A stream that refuses to be read or skipped beyond a budget, whatever the headers in it say."""

    def __init__(self, raw: _Raw, budget: Budget):
        self.raw, self.budget = raw, budget
        # room for headers and padding in addition to the members' bytes
        self.end = budget.limit + ALLOWANCE + 2 * budget.archive.stat().st_size
        self.tell = raw.tell

    def read(self, count: int) -> bytes:
        """Read up to ``count`` bytes."""
        self._check(self.raw.tell() + count)
        return self.raw.read(count)

    def seek(self, position: int, whence: int = os.SEEK_SET) -> int:
        """Go to an absolute position."""
        self._check(position)
        return self.raw.seek(position, whence)

    def _check(self, end: int) -> None:
        if end > self.end:
            raise self.budget.refusal()
