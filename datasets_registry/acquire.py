"""Getting a dataset's files: downloads, and folders that torchvision or a user has already."""

from __future__ import annotations

import os
import shutil
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from typing import Literal

from datasets_registry.card import Archive, Card
from vlprompt.errors import VlpromptError
from vlprompt.files import extract_tar, extract_zip, md5_file

BLOCK = 1 << 20
TAR_ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
Progress = Callable[[int, int], None]


def how_to_get(card: Card) -> str:
    """Return what a user has to do to get the images, in one phrase."""
    offer = f"use download=true or vlprompt data download {card.name}, or " if card.archives else ""
    return f"{offer}get them from {card.homepage} (vlprompt data info {card.name} shows the layout)"


def download_dataset(card: Card, root: Path, progress: Progress | None = None) -> None:
    """Fetch and unpack a dataset's archives below the data root.

    An interrupted download goes on where it stopped; an archive is checked against the card's MD5 where it has one and
    is deleted once it is unpacked. Files that are there already are left as they are.

    Raises:
        VlpromptError: the card knows no archive, the network fails, or an archive is damaged or unsafe.
    """
    if not card.archives:
        raise VlpromptError(
            f"{card.title} has no automatic download: get its images from {card.homepage} "
            f"and put them into {root / card.folder / card.images}"
        )
    for archive in card.archives:
        folder = root / archive.into
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / archive.url.rpartition("/")[2]
        is_archive = path.name.endswith((*TAR_ENDINGS, ".zip"))
        if path.exists() and not is_archive:
            continue
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


def fetch(url: str, path: Path, md5: str = "", progress: Progress | None = None) -> None:
    """Download a file; an earlier attempt's ``.part`` is continued, and the whole checked before it gets its name."""
    if not url.startswith(("https://", "http://")):
        raise VlpromptError(f"'{url}' is not an address on the web")
    part = path.with_name(path.name + ".part")
    done = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(
        url, headers={"User-Agent": "vlprompt", **({"Range": f"bytes={done}-"} if done else {})}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            if response.status != 206:  # the server starts from the beginning
                done = 0
            length = response.headers.get("Content-Length")
            total = done + int(length) if length else 0
            with open(part, "ab" if done else "wb") as file:
                while block := response.read(BLOCK):
                    file.write(block)
                    done += len(block)
                    if progress:
                        progress(done, total)
        if done < total:
            raise VlpromptError(f"{url} ended after {done} of {total} bytes; run it again to go on")
    except urllib.error.HTTPError as error:
        if error.code != 416:  # nothing is left to fetch
            raise VlpromptError(f"{url} answers {error.code} {error.reason}") from error
    except (OSError, HTTPException) as error:
        raise VlpromptError(f"{url}: {getattr(error, 'reason', error)}") from error
    if md5 and md5_file(part) != md5:
        part.unlink()
        raise VlpromptError(f"what {url} gave has another checksum than expected, and was deleted")
    os.replace(part, path)


def unpack(path: Path, archive: Archive, folder: Path) -> None:
    """Unpack an archive, or the wanted member of it, into ``folder``, file by file beside what is there."""
    with tempfile.TemporaryDirectory(dir=folder, prefix=".unpack-") as temporary:
        top = Path(temporary, "content")
        top.mkdir()
        _extract(path, top)
        if archive.member:
            member = top / archive.member
            if not member.exists():
                raise VlpromptError(f"{path} has no {archive.member}: its authors have changed it")
            if member.is_file():
                _extract(member, Path(temporary, "inner"))
                top = Path(temporary, "inner")
            else:
                top = member
        _merge(top, folder)


def _extract(path: Path, folder: Path) -> None:
    (extract_zip if path.suffix == ".zip" else extract_tar)(path, folder)


def _merge(source: Path, target: Path) -> None:
    """Move what ``source`` holds into ``target``; a file that is there already stays."""
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
    """Put a layout of torchvision's below the data root in place of ours, by links or by moving; videos give frames.

    Args:
        card: of the dataset.
        source: torchvision's root; for UCF101 the folder of the videos.
        root: the data root.
        mode: ``link`` leaves the files where they are, ``move`` does not.
        progress: called with the number of videos done and in all.

    Returns:
        A line for each thing done or found done already.
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
        raise VlpromptError(f"nothing of {card.title} is in {source}: expected {wanted}")
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
