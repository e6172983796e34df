"""What is installed elsewhere is whole: every package and every file that the code reads is named in setup.cfg."""

from __future__ import annotations

import configparser
from fnmatch import fnmatch
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = {
    "vlprompt": ROOT / "vlprompt",
    "datasets_registry": ROOT / "datasets_registry",
    "vlprompt.configs": ROOT / "configs",
}


def setup_cfg() -> configparser.ConfigParser:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    return config


def requirements(lines: str) -> dict[str, Requirement]:
    return {(one := Requirement(line)).name: one for line in lines.splitlines() if line and not line.startswith("#")}


def bounds(requirement: Requirement, operator: str) -> list[Version]:
    return [Version(one.version) for one in requirement.specifier if one.operator == operator]


def shipped() -> tuple[dict[str, Path], dict[str, list[str]]]:
    """The packages of setup.cfg with their folders, and the patterns of files beside their modules."""
    config = setup_cfg()
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


def test_the_constraints_are_the_lowest_versions_that_are_declared() -> None:
    # case: the lowest versions that setup.cfg allows
    config = setup_cfg()
    lowest = requirements((ROOT / "constraints/lowest.txt").read_text())
    needed = requirements(config["options"]["install_requires"])
    extras = requirements("\n".join(config["options.extras_require"].values()))
    assert set(needed) <= set(lowest) <= set(needed | extras)
    for name, pin in lowest.items():
        assert bounds(pin, "==") == bounds((extras | needed)[name], ">="), name


def test_packages_whose_internals_are_used_have_an_upper_bound() -> None:
    needed = requirements(setup_cfg()["options"]["install_requires"])
    assert all(bounds(needed[name], "<") for name in ("open_clip_torch", "timm"))
