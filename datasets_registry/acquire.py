"""Getting a dataset's files: by download, or from a folder that torchvision or the user already has."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Literal

from datasets_registry.card import Archive, Card
from vlprompt.base.archives import LEFTOVERS, extract
from vlprompt.base.files import inside, is_relative_inside, locked, md5_file
from vlprompt.errors import VlpromptError

BLOCK = 1 << 20
MAX_DOWNLOAD = 2**38  # bytes, if a server does not state the size; twice ImageNet's
TAR_ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
Progress = Callable[[int, int], None]


def how_to_get(card: Card) -> str:
    """Return what a user has to do to get the images, in one phrase."""
    offer = f"use download=true or vlprompt data download {card.name}, or " if card.archives else ""
    return f"{offer}get them from {card.homepage} (vlprompt data info {card.name} shows the layout)"


def download_dataset(card: Card, root: Path, progress: Progress | None = None) -> None:
    """Fetch and unpack a dataset's archives below the data root.

    An interrupted download continues where it stopped. An archive is checked against the card's MD5, if it has one, and
    deleted once it is unpacked. Existing files are left as they are.

    Raises:
        VlpromptError: the card names no archive, the network fails, or an archive is damaged or unsafe.
    """
    if not card.archives:
        raise VlpromptError(
            f"{card.title} has no automatic download: get its images from {card.homepage} "
            f"and put them into {root / card.folder / card.images}"
        )
    for archive in card.archives:
        folder = inside(root, archive.into) if archive.into else root
        busy = VlpromptError(f"another process is downloading {card.title} into {folder}: wait for it")
        lock = folder / f".{card.name}.lock"
        with locked(lock, busy):
            try:
                for leftover in folder.glob(f"{LEFTOVERS}*"):  # from a process that was killed
                    shutil.rmtree(leftover, ignore_errors=True)
                _get(card, archive, folder, root, progress)
            finally:
                with contextlib.suppress(OSError):
                    lock.unlink()


def _get(card: Card, archive: Archive, folder: Path, root: Path, progress: Progress | None) -> None:
    """Fetch one file of a card and unpack it, if it is an archive."""
    path = folder / _file_name(archive.url)
    is_archive = path.name.lower().endswith((*TAR_ENDINGS, ".zip"))
    if path.exists() and not is_archive:
        return
    try:
        fetch(archive.url, path, archive.md5, progress)
    except VlpromptError as error:
        raise VlpromptError(
            f"the download of {card.title} failed ({error}): try again, or get it from {card.homepage} "
            f"and put its images into {root / card.folder / card.images}"
        ) from error
    if is_archive:
        unpack(path, archive, folder)
        path.unlink()


def _file_name(url: str) -> str:
    name = url.rpartition("/")[2]
    if not is_relative_inside(name):
        raise VlpromptError(f"'{url}' does not end with the name of a file")
    return name


def fetch(url: str, path: Path, md5: str = "", progress: Progress | None = None) -> None:
    """Download a file to ``path``, continuing the ``.part`` file of an earlier attempt.

    Args:
        url: an http or https address.
        path: where to write the file; it appears only once it is complete and checked.
        md5: the expected checksum in hexadecimal digits; empty for no check.
        progress: called with the number of bytes received and in all (0 if unknown).

    Raises:
        VlpromptError: the address is invalid, the network fails, or the file is too large or has another checksum.
    """
    if not url.startswith(("https://", "http://")) or not url.isprintable():
        raise VlpromptError(f"{url!r} is not an address on the web")
    part = path.with_name(path.name + ".part")
    done = part.stat().st_size if part.exists() else 0
    try:
        request = urllib.request.Request(
            url, headers={"User-Agent": "vlprompt", **({"Range": f"bytes={done}-"} if done else {})}
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            _receive(response, url, part, done, progress)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not _is_whole(error.headers.get("Content-Range"), done):
            if error.code == 416:  # the part is of another file
                part.unlink()
            raise VlpromptError(f"{url} answers {error.code} {error.reason}") from error
    except (OSError, HTTPException, ValueError) as error:
        if isinstance(error, VlpromptError):
            raise
        raise VlpromptError(f"{url}: {getattr(error, 'reason', None) or error or type(error).__name__}") from error
    if md5 and md5_file(part) != md5:
        part.unlink()
        raise VlpromptError(f"the file from {url} does not have the expected checksum, and was deleted")
    os.replace(part, path)


def _receive(response: HTTPResponse, url: str, part: Path, done: int, progress: Progress | None) -> None:
    """Append an answer to the ``done`` bytes of a part, or replace them if it starts from the beginning."""
    starts = re.match(r"bytes (\d+)-", response.headers.get("Content-Range") or "")
    if response.status != 206 or (starts and starts[1] != str(done)):
        if response.status == 206:
            part.unlink()
            raise VlpromptError(f"{url} answers with other bytes than were asked for; run it again to start over")
        done = 0
    length = response.headers.get("Content-Length")
    if length and not re.fullmatch(r"\d{1,15}", length):
        raise VlpromptError(f"{url} answers with the length {length!r:.40}, which is not a number of bytes")
    total = done + int(length) if length else 0
    free = shutil.disk_usage(part.parent).free
    if total - done > free:
        raise VlpromptError(f"{url} has {total:,} bytes, and {part.parent} has room for {free:,}")
    most = total or min(MAX_DOWNLOAD, free)
    with open(part, "ab" if done else "wb") as file:
        while block := response.read(BLOCK):
            done += len(block)
            if done > most:
                raise VlpromptError(f"{url} does not end after {most:,} bytes")
            file.write(block)
            if progress:
                progress(done, total)
    if done < total:
        raise VlpromptError(f"{url} ended after {done} of {total} bytes; run it again to continue")


def _is_whole(content_range: str | None, done: int) -> bool:
    """Whether ``done`` bytes are the whole file by the size that a server states; true if it states none."""
    size = re.fullmatch(r"bytes \*/(\d+)", content_range or "")
    return size is None or int(size[1]) == done


def unpack(path: Path, archive: Archive, folder: Path) -> None:
    """Unpack an archive, or its wanted member, into ``folder``; existing files stay."""
    with tempfile.TemporaryDirectory(dir=folder, prefix=LEFTOVERS) as temporary:
        top = Path(temporary, "content")
        budget = extract(path, top)
        if archive.member:
            member = inside(top, archive.member)
            if not member.exists():
                raise VlpromptError(f"{path} has no {archive.member}: its authors have changed it")
            if member.is_file():
                extract(member, Path(temporary, "inner"), budget.limit)
                top = Path(temporary, "inner")
            else:
                top = member
        _merge(top, folder)


def _merge(source: Path, target: Path) -> None:
    """Move the content of ``source`` into ``target``; existing files stay."""
    target.mkdir(exist_ok=True)
    for entry in sorted(source.iterdir()):
        place = target / entry.name
        if entry.is_dir() and place.is_dir():
            _merge(entry, place)
        elif not place.exists():
            os.replace(entry, place)


def prepare_dataset(
    card: Card, source: Path, root: Path, mode: Literal["link", "move"] = "link", progress: Progress | None = None
) -> list[str]:
    """Make our layout below the data root from torchvision's, by links or by moving; of videos, middle frames are kept.

    Args:
        card: the dataset's card.
        source: torchvision's root; for UCF101 the folder of the videos.
        root: the data root.
        mode: ``link`` leaves the files where they are, ``move`` moves them.
        progress: called with the number of videos done and in all.

    Returns:
        A line for each thing that was done, or had been done before.

    Raises:
        VlpromptError: the mode is unknown, ``source`` has nothing of the dataset, or no conversion is known.
    """
    if mode not in ("link", "move"):
        raise VlpromptError(f"mode must be link or move, not '{mode}'")
    if not source.is_dir():
        raise VlpromptError(f"the folder {source} does not exist")
    if card.lister == "ucf101":
        from datasets_registry.video import write_middle_frames

        target = root / card.folder / card.images
        written, kept = write_middle_frames(source, target, progress)
        return [f"{written} middle frames written to {target}, {kept} were there already"]
    if not card.torchvision:
        raise VlpromptError(f"{card.title} has no layout to start from: vlprompt data info {card.name} shows ours")
    found = {source / theirs: root / ours for theirs, ours in card.torchvision.items() if (source / theirs).exists()}
    if not found:
        wanted = ", ".join(str(source / theirs) for theirs in card.torchvision)
        raise VlpromptError(f"{source} contains nothing of {card.title}: expected {wanted}")
    return [_put(theirs, ours, mode) for theirs, ours in found.items()]


def _put(source: Path, target: Path, mode: str) -> str:
    if os.path.lexists(target):
        if not target.exists():
            raise VlpromptError(f"{target} is a link to nothing: delete it")
        same = os.path.samefile(source, target)
        return f"{target} is there already" + ("" if same else f", and is not {source}: nothing was written")
    target.parent.mkdir(parents=True, exist_ok=True)
    if mode == "move":
        shutil.move(source, target)
        return f"{target} moved from {source}"
    target.symlink_to(source.resolve(), target_is_directory=source.is_dir())
    return f"{target} is a link to {source}"
