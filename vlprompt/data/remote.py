"""Images that are not local files: at URLs that fsspec can open (s3://, gs://, hf://), or in tar shards."""

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

URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)  # two letters or more, unlike a Windows drive
SHARDS = (".tar", ".tar.gz", ".tgz")
MAX_MEMBER = 2**30  # bytes of an image in a shard


@dataclass(frozen=True)
class Stored:
    """The bytes of an image file, with a name for errors and predictions.

    Attributes:
        name: ``SHARD/IMAGE``, or a URL.
        content: the bytes.
        problem: why they cannot be read; empty if they can.
    """

    name: str
    content: bytes = b""
    problem: str = ""

    def __fspath__(self) -> str:
        return self.name

    def open(self) -> BinaryIO:
        """Return the bytes as a file object, or raise a ``VlpromptError`` if there are none."""
        if self.problem:
            raise VlpromptError(self.problem)
        return BytesIO(self.content)


def is_url(place: object) -> bool:
    """Whether this is a URL such as ``s3://bucket/cat.jpg``, not a path."""
    return isinstance(place, str) and URL.match(place) is not None


def is_shard(place: str) -> bool:
    """Whether a path or URL is that of a tar shard, by its ending."""
    return place.lower().endswith(SHARDS)


def open_url(url: str) -> IO[bytes]:
    """Open the file at a URL.

    Raises:
        VlpromptError: there is none, it cannot be read, or the package for such URLs is not installed.
    """
    system, path = _system_of(url)
    try:
        opened: IO[bytes] = system.open(path, "rb")
    except FileNotFoundError:
        raise VlpromptError(f"there is nothing at {url}") from None
    except Exception as error:  # each file system has its own exceptions
        raise VlpromptError(f"cannot read {url} ({first_line(error)})") from error
    return opened


def read_url(url: str) -> bytes:
    """Return the bytes at a URL; raises as ``open_url``."""
    with open_url(url) as file:
        try:
            return file.read()
        except Exception as error:
            raise VlpromptError(f"cannot read {url} ({first_line(error)})") from error


def list_urls(url: str) -> list[str]:
    """Return the images or tar shards at a URL, sorted.

    The URL may be that of an image or a shard, a pattern, or a folder, of which all images below are listed, or all
    shards if there are no images.

    Raises:
        VlpromptError: the URL cannot be listed.
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
    """Return the images among file names, or the tar shards if there are none; ignored files are left out."""
    kept = [name for name in names if not is_ignored(posixpath.basename(name))]
    return [name for name in kept if is_image_name(name)] or [name for name in kept if is_shard(name)]


def _system_of(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL, and the path in it."""
    from fsspec.core import url_to_fs

    try:
        system, path = url_to_fs(url)
    except ImportError as error:
        raise VlpromptError(f"{url} needs another package: {first_line(error)}") from error
    except Exception as error:
        raise VlpromptError(f"{url} is not an address that can be read ({first_line(error)})") from error
    return system, str(path)


def unpacked(places: Iterable[str]) -> Iterator[str | Stored]:
    """Yield paths and URLs of images unchanged, and the images in tar shards one by one.

    If a shard cannot be read to its end, or an image in it is too large, a ``Stored`` with a ``problem`` is yielded.
    """
    for place in places:
        if is_shard(place):
            yield from _members(place)
        else:
            yield place


def _members(shard: str) -> Iterator[Stored]:
    """Yield the images of a shard in their order; nothing is extracted to disk."""
    try:
        with _opened(shard) as file, tarfile.open(fileobj=file, mode="r|*") as tar:
            for member in tar:
                name = f"{shard}/{member.name}"
                if not member.isreg() or not is_image_name(member.name):
                    continue
                if member.size > MAX_MEMBER:
                    problem = f"the image {name} has {member.size:,} bytes; at most {MAX_MEMBER:,} are read"
                    yield Stored(name, problem=problem)
                    continue
                content = tar.extractfile(member)
                assert content is not None  # since it is a file
                yield Stored(name, content.read())
    except FileNotFoundError:
        yield Stored(shard, problem=f"the shard {shard} does not exist")
    except VlpromptError as error:
        yield Stored(shard, problem=str(error))
    except Exception as error:  # damaged archives make tarfile and the decompressors raise anything
        yield Stored(shard, problem=f"cannot read the shard {shard} ({first_line(error)})")


def _opened(place: str) -> IO[bytes]:
    """Open a shard at a path or URL."""
    if is_url(place):
        return open_url(place)
    refuse_stream(place)
    return open(os.path.expanduser(place), "rb")
