"""Atomic writes, locks, checksums, text of any encoding, and paths that cannot leave their folder."""

from __future__ import annotations

import codecs
import errno
import hashlib
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PureWindowsPath

from vlprompt.errors import VlpromptError

CACHE_VARIABLE = "VLPROMPT_CACHE"
OF_SHELL = ("/dev/fd/", "/dev/std", "/proc/self/fd/")
OF_WRITING = {getattr(errno, name) for name in ("ENOSPC", "EDQUOT", "EROFS", "EFBIG", "EIO") if hasattr(errno, name)}


def cache_dir() -> Path:
    """Return the folder of caches: ``$VLPROMPT_CACHE``, or ``~/.cache/vlprompt``."""
    return Path(os.environ.get(CACHE_VARIABLE) or "~/.cache/vlprompt").expanduser()


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path next to ``path``, which replaces it when the block ends without an error.

    Readers see either the old file or the complete new one; of two writers the last one wins. Missing folders are
    created.

    Raises:
        VlpromptError: the file cannot be written (full disk, quota, read-only folder). The previous file is then
            unchanged, and no temporary file is left.
    """
    path = Path(path)
    with writing(path):
        if os.path.exists(path):
            refuse_stream(path, of_shell=False)  # it would be replaced, even /dev/null
        import tempfile  # here, like other modules below, so that commands that write nothing start faster

        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=_temporary_prefix(path), suffix=".tmp")
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            # mkstemp creates a private file, but the result should have the permissions of any new file
            os.chmod(temporary, 0o666 & ~_umask())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def temporary_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder on the same file system as ``path``; it is deleted afterwards."""
    import tempfile

    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=_temporary_prefix(path)) as folder:
        yield Path(folder)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the system's errors when ``path`` cannot be written into one sentence that names it."""
    try:
        yield
    except VlpromptError:
        raise
    except Exception as error:
        reason = _storage_failure(error, path)
        if reason is None:
            raise
        raise VlpromptError(f"cannot write {path}: {reason}; nothing there was changed") from error


def _storage_failure(error: BaseException | None, path: Path) -> str | None:
    """Why writing failed, or None for other errors; libraries hide the system's error number in errors of their own."""
    from safetensors import SafetensorError

    while error is not None:
        code = getattr(error, "errno", None)
        if isinstance(error, OSError) and (_names(error, path) or (not error.filename and code in OF_WRITING)):
            return os.strerror(code).lower() if code else str(error)
        number = re.search(r"(?:\bcode:|\bos error) (\d+)", str(error)) if isinstance(error, SafetensorError) else None
        if number:
            return os.strerror(int(number[1])).lower()
        error = error.__cause__ or error.__context__
    return None


def _names(error: OSError, path: Path) -> bool:
    """Whether an error is about ``path``, one of its folders or its temporary file, and not about another file."""
    names = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, (str, bytes))]
    places = {os.fspath(place) for place in (path, *path.parents)}
    return any(name in places or Path(name).name.startswith(_temporary_prefix(path)) for name in names)


def _temporary_prefix(path: Path) -> str:
    return f".{path.name[:100]}."  # a name has 255 bytes at most


@contextmanager
def locked(path: Path, busy: VlpromptError | None = None) -> Iterator[None]:
    """Hold a lock on the file ``path``, which the system releases if this process dies.

    Args:
        path: the lock file; missing folders are created.
        busy: error to raise if another process has the lock; None waits for it.
    """
    from filelock import FileLock, Timeout

    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        if busy is None:
            lock.acquire()
        else:
            try:
                lock.acquire(timeout=0)
            except Timeout:
                raise busy from None
    try:
        yield
    finally:
        lock.release()


def remove_leftovers(folder: Path, name: str = "*") -> None:
    """Delete temporary files of killed processes, anywhere in a folder whose lock the caller holds."""
    for left in folder.rglob(f".{name}.*.tmp"):
        with writing(left):
            left.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def refuse_stream(path: str | Path, of_shell: bool = True) -> None:
    """Refuse a device, a socket or a named pipe, since reading it may never end.

    Args:
        path: path to read or write.
        of_shell: whether to allow a shell's streams, such as ``/dev/stdin``.

    Raises:
        VlpromptError: the path is neither a file nor a folder.
        OSError: the path does not exist.
    """
    mode = os.stat(path).st_mode
    handed = str(path).startswith(OF_SHELL)
    if not (of_shell if handed else stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise VlpromptError(f"{path} is a pipe, a device or a socket, not a file")


def read_text(path: str | Path) -> str:
    """Read a text file in UTF-8 or UTF-16, with or without a byte order mark, and with any line endings.

    Raises:
        VlpromptError: it has another encoding (the message names the line), or it is a device.
        OSError: it does not exist or may not be read.
    """
    refuse_stream(path)
    content = Path(path).read_bytes()
    encoding = "utf-16" if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise VlpromptError(f"line {line} of {path} is not UTF-8: save the file as UTF-8") from None
    if "\0" in text:
        raise VlpromptError(f"{path} is not a text file, or its encoding is not marked: save it as UTF-8")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def text_lines(path: str | Path, by_place: bool = False) -> list[str]:
    """Return the non-empty lines of a text file, without surrounding white space.

    Args:
        path: the file.
        by_place: whether line numbers have a meaning, as for names in label order; then empty lines between others are
            refused.

    Raises:
        VlpromptError, OSError: as for ``read_text``, or an empty line is refused.
    """
    lines = [line.strip() for line in read_text(path).rstrip().split("\n")]
    if by_place and "" in lines and any(lines):
        raise VlpromptError(f"line {lines.index('') + 1} of {path} is empty: every line must hold a name, so delete it")
    return [line for line in lines if line]


def sha256_file(path: str | Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    return _hash_of_file(path, hashlib.sha256())


def md5_file(path: str | Path) -> str:
    """Return the MD5 of a file's bytes, which many datasets publish for their archives."""
    return _hash_of_file(path, hashlib.md5(usedforsecurity=False))


def _hash_of_file(path: str | Path, digest: hashlib._Hash) -> str:
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def is_relative_inside(name: str) -> bool:
    """Whether a relative path stays inside its folder, judged by its text and for any operating system."""
    windows = PureWindowsPath(name)  # splits at both kinds of slash
    return bool(windows.parts) and not windows.anchor and ".." not in windows.parts and "\0" not in name


def inside(root: str | Path, name: str) -> Path:
    """Return ``root / name``, or raise VlpromptError if it is absolute, has ``..`` or leaves ``root`` by a symlink."""
    path = Path(root, name)
    below_root = os.path.join(os.path.realpath(root), "")
    if not is_relative_inside(name):
        raise VlpromptError(f"refused the path '{name}': it leads out of {root}")
    if not os.path.realpath(path).startswith(below_root):
        raise VlpromptError(
            f"refused the path '{name}': it is or lies behind a link that leads out of {root} (data of your own may "
            "have such links with follow_links=true)"
        )
    return path
