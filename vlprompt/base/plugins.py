"""Plugins: modules of other packages that register methods, objectives and the like when they are imported.

Installed packages declare them in the entry point group ``vlprompt.plugins``; other modules or files are given by
``plugin=`` on the command line. They are imported before the first name is looked up, by workers of a sweep as well.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from vlprompt.errors import VlpromptError, warn

GROUP = "vlprompt.plugins"
VARIABLE = "VLPROMPT_PLUGINS"  # modules and files that worker processes import too
_once = threading.RLock()
_looked_for = False


def load_installed() -> None:
    """Import the plugins of installed packages, and those given to a parent process, once per process."""
    global _looked_for
    with _once:  # other threads wait; plugins that look names up themselves do not
        if _looked_for:
            return
        _looked_for = True
        _load_installed()


def _load_installed() -> None:
    from importlib.metadata import entry_points  # here, since it is slow to import

    for entry in entry_points(group=GROUP):
        try:
            entry.load()
        except Exception as error:  # a broken package must not break everything
            warn(f"the plugin {entry.name} of {entry.value} cannot be loaded: {error}")
    for name in used():
        load(name)


def use(names: str | Sequence[str]) -> None:
    """Import plugins by module name or ``.py`` file, in this process and in later worker processes.

    Raises:
        VlpromptError: one of them cannot be imported.
    """
    names = [names] if isinstance(names, str) else names
    names = [str(Path(name).expanduser().resolve()) if name.endswith(".py") else name for name in names]
    for name in names:
        load(name)
    os.environ[VARIABLE] = os.pathsep.join(dict.fromkeys([*used(), *names]))


def used() -> list[str]:
    """The plugins that were named, here or in the process that started this one, in order."""
    return [name for name in os.environ.get(VARIABLE, "").split(os.pathsep) if name]


def load(name: str) -> None:
    """Import a module, from the current folder or installed, or a ``.py`` file, once per process.

    Raises:
        VlpromptError: it cannot be imported.
    """
    try:
        if not name.endswith(".py"):
            if "" not in sys.path and os.getcwd() not in sys.path:
                sys.path.insert(0, os.getcwd())
            importlib.import_module(name)
            return
        path = Path(name)
        if path.stem in sys.modules:
            return
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None  # every .py file has one, and its loader
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[path.stem] = module  # needed by dataclasses
        spec.loader.exec_module(module)
    except Exception as error:  # it may raise anything
        sys.modules.pop(Path(name).stem, None)
        raise VlpromptError(f"plugin={name} cannot be imported: {type(error).__name__}: {error}") from error
