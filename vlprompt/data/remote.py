"""Images that are not files by themselves: at an address that fsspec knows (s3://, gs://, hf://), or in tar shards."""

from __future__ import annotations

import glob
import os
import posixpath
import re
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from io import BytesIO
from typing import IO, Any, BinaryIO

from vlprompt.base.files import refuse_stream
from vlprompt.data.formats import is_image_name
from vlprompt.data.listing import is_ignored
from vlprompt.errors import VlpromptError, first_line

URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)  # and no drive of Windows
SHARDS = (".tar", ".tar.gz", ".tgz")
MAX_MEMBER = 2**30  # bytes of an image in a shard


@dataclass(frozen=True)
class Stored:
    """An image's bytes, and what errors and predictions call it.

    Attributes:
        name: of the shard and of the image in it.
        content: the bytes of its file.
        problem: why there are none.
    """

    name: str
    content: bytes = b""
    problem: str = ""

    def __fspath__(self) -> str:
        return self.name

    def open(self) -> BinaryIO:
        """Return the bytes as a file, or raise a ``VlpromptError``."""
        if self.problem:
            raise VlpromptError(self.problem)
        return BytesIO(self.content)


def is_url(place: object) -> bool:
    """Tell an address such as ``s3://bucket/cat.jpg`` from a path."""
    return isinstance(place, str) and URL.match(place) is not None


def is_shard(place: str) -> bool:
    """Tell by its ending whether a path or address is one of a tar shard."""
    return place.lower().endswith(SHARDS)


def open_url(url: str) -> IO[bytes]:
    """Open what is at an address.

    Raises:
        VlpromptError: nothing is there, or the package that knows such addresses is missing.
    """
    system, path = _system_of(url)
    try:
        opened: IO[bytes] = system.open(path, "rb")
    except FileNotFoundError:
        raise VlpromptError(f"there is nothing at {url}") from None
    except Exception as error:  # each system raises kinds of its own
        raise VlpromptError(f"cannot read {url} ({first_line(error)})") from error
    return opened


def read_url(url: str) -> bytes:
    """Return the bytes at an address; errors as ``open_url``."""
    with open_url(url) as file:
        try:
            return file.read()
        except Exception as error:
            raise VlpromptError(f"cannot read {url} ({first_line(error)})") from error


def list_urls(url: str) -> list[str]:
    """Return the addresses that one stands for: itself, what matches a pattern, or the images below a folder.

    A folder without images stands for the tar shards below it. All but the first are sorted.

    Raises:
        VlpromptError: the system cannot be asked.
    """
    if (is_image_name(url) or is_shard(url)) and not glob.has_magic(url):
        return [url]
    system, path = _system_of(url)
    try:
        names = system.glob(path) if glob.has_magic(path) else system.find(path)
    except Exception as error:
        raise VlpromptError(f"cannot look into {url} ({first_line(error)})") from error
    return [system.unstrip_protocol(name) for name in images_or_shards(sorted(names))]


def images_or_shards(names: list[str]) -> list[str]:
    """Return the images among names of files, or where there are none the tar shards; not what systems leave there."""
    own = [name for name in names if not is_ignored(posixpath.basename(name))]
    return [name for name in own if is_image_name(name)] or [name for name in own if is_shard(name)]


def _system_of(url: str) -> tuple[Any, str]:
    """The file system that knows an address, and the path in it."""
    from fsspec.core import url_to_fs

    try:
        system, path = url_to_fs(url)
    except ImportError as error:
        raise VlpromptError(f"{url} needs another package: {first_line(error)}") from error
    except Exception as error:
        raise VlpromptError(f"{url} is not an address that can be read ({first_line(error)})") from error
    return system, str(path)


def unpacked(places: Iterable[str]) -> Iterator[str | Stored]:
    """Yield the images at paths and addresses: those in a tar shard one by one, others as they are.

    A shard that cannot be read to its end, or a member that is too large, is an image that cannot be read.
    """
    for place in places:
        if is_shard(place):
            yield from _members(place)
        else:
            yield place


def _members(shard: str) -> Iterator[Stored]:
    """Images of a shard as they come in it; nothing is unpacked to disk."""
    try:
        with _opened(shard) as file, tarfile.open(fileobj=file, mode="r|*") as tar:
            for member in tar:
                name = f"{shard}/{member.name}"
                if not member.isreg() or not is_image_name(member.name):
                    continue
                if member.size > MAX_MEMBER:
                    yield Stored(name, problem=f"the image {name} has {member.size:,} bytes; {MAX_MEMBER:,} are read")
                    continue
                content = tar.extractfile(member)
                assert content is not None  # of a file
                yield Stored(name, content.read())
    except FileNotFoundError:
        yield Stored(shard, problem=f"the shard {shard} does not exist")
    except Exception as error:  # tarfile and those who unpack raise whatever they meet
        ours = isinstance(error, VlpromptError)
        yield Stored(shard, problem=str(error) if ours else f"cannot read the shard {shard} ({first_line(error)})")


def _opened(place: str) -> IO[bytes]:
    if is_url(place):
        return open_url(place)
    refuse_stream(place)
    return open(os.path.expanduser(place), "rb")
