"""What is installed elsewhere is whole: every package and every file that the code reads is named in setup.cfg."""

from __future__ import annotations

import configparser
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = {
    "vlprompt": ROOT / "vlprompt",
    "datasets_registry": ROOT / "datasets_registry",
    "vlprompt.configs": ROOT / "configs",
}


def shipped() -> tuple[dict[str, Path], dict[str, list[str]]]:
    """The packages of setup.cfg with their folders, and the patterns of files beside their modules."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    names = config["options"]["packages"].split()
    folders = {name: FOLDERS.get(name, ROOT / name.replace(".", "/")) for name in names}
    data = {key: value.replace(",", " ").split() for key, value in config["options.package_data"].items()}
    return folders, data


def test_every_folder_with_modules_is_a_package() -> None:
    folders, _ = shipped()
    modules = [path for top in ("vlprompt", "datasets_registry") for path in (ROOT / top).rglob("*.py")]
    assert {path.parent for path in modules} <= set(folders.values())


def test_every_file_beside_the_modules_is_shipped() -> None:
    folders, data = shipped()
    covered = {
        path for name, folder in folders.items() for pattern in data.get(name, ()) for path in folder.glob(pattern)
    }
    beside = {
        path
        for top in FOLDERS.values()
        for path in top.rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc") and not fnmatch(path.name, ".*")
    }
    assert beside
    assert beside == covered
