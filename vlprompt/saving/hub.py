"""Downloading learners from the Hugging Face Hub, ``hf://user/name[@revision]``, and uploading them."""

from __future__ import annotations

import os
import re
from pathlib import Path

from vlprompt.base.layout import CARD, CONFIG, LEARNABLES, TEXT
from vlprompt.errors import VlpromptError

PREFIX = "hf://"
FILES = (LEARNABLES, CONFIG, CARD)
NEEDED = [*FILES[:2], *(f"{TEXT}/*{name}" for name in FILES[:2])]  # and of the learner that it is built on
REPO = re.compile(r"[\w-]+(?:\.[\w-]+)*/[\w-]+(?:\.[\w-]+)*")
REVISION = re.compile(r"[\w-][\w./-]*")


def fetch(address: str) -> Path:
    """Download a learner's tensors and configuration, or find them in the Hub's cache, and return their folder.

    Args:
        address: ``hf://user/name[@revision]``.

    Raises:
        VlpromptError: the address is invalid, there is no such learner, or the Hub cannot be reached.
    """
    from huggingface_hub import snapshot_download

    repo, _, revision = address.removeprefix(PREFIX).partition("@")
    check_repo(repo)
    if revision and (not REVISION.fullmatch(revision) or ".." in revision):
        raise VlpromptError(
            f"'{revision}' is not a revision: write {PREFIX}user/name@revision, a branch, tag or commit"
        )
    try:
        folder = snapshot_download(
            repo, revision=revision or None, allow_patterns=NEEDED, endpoint=os.environ.get("HF_ENDPOINT")
        )
    except Exception as error:  # the Hub client raises its own exceptions and those of its HTTP library
        raise VlpromptError(f"could not fetch {address}: {_reason(error)}") from error
    if not Path(folder, CONFIG).exists():
        raise VlpromptError(f"{address} contains no learner: it has no config.json")
    return Path(folder)


def upload(folder: Path, repo: str, private: bool = False) -> None:
    """Upload a learner's files to a repository, which is created if needed.

    Raises:
        VlpromptError: you are not logged in, the Hub refuses, or it cannot be reached.
    """
    from huggingface_hub import HfApi

    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"), library_name="vlprompt")
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repo, folder_path=folder, allow_patterns=[*NEEDED, CARD], commit_message="Add learner"
        )
    except Exception as error:  # as in fetch
        raise VlpromptError(f"could not push to {PREFIX}{repo}: {_reason(error)}") from error


def refuse_address(path: object, instead: str) -> None:
    """Raise a ``VlpromptError`` if an address on the Hub was given where a folder is needed."""
    if str(path).startswith(PREFIX.rstrip("/")):  # a Path has lost one of the slashes
        raise VlpromptError(f"{path} is an address on the Hub, and a folder of yours is needed here: {instead}")


def check_repo(repo: str) -> None:
    """Raise a ``VlpromptError`` unless a name has the form ``user/name``."""
    if not REPO.fullmatch(repo):
        raise VlpromptError(f"'{repo}' is not a repository name of the Hub: write it as user/name")


def _reason(error: Exception) -> str:
    """What went wrong, and what to do about it."""
    kind = type(error).__name__
    if kind in ("RepositoryNotFoundError", "GatedRepoError"):
        return "there is no such repository, or it is private and you are not logged in (run: hf auth login)"
    if kind == "RevisionNotFoundError":
        return "the repository has no such revision"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403) or kind == "LocalTokenNotFoundError":
        return "you are not logged in, or may not write there (run: hf auth login)"
    if status:
        return f"the Hub answered {status}"
    return "the Hub cannot be reached (no network?); folders and earlier downloads work offline"
