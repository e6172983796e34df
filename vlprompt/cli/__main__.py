"""The door of ``vlprompt COMMAND key=value …``: finds the command's module and hands it the rest."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Sequence
from types import ModuleType

import vlprompt.cli
from vlprompt.base.declared import docstring
from vlprompt.cli._shared import Command, command
from vlprompt.errors import VlpromptError, nearest
from vlprompt.version import __version__


def commands() -> list[str]:
    """Names of the commands: the modules of this package that do not start with an underscore, with dashes."""
    modules = (m.name for m in pkgutil.iter_modules(vlprompt.cli.__path__))
    return sorted(name.replace("_", "-") for name in modules if not name.startswith("_"))


def module(name: str) -> ModuleType:
    """The module of a command."""
    return importlib.import_module(f"vlprompt.cli.{name.replace('-', '_')}")


def usage() -> str:
    """Return what ``vlprompt --help`` prints."""
    lines = ["vlprompt COMMAND key=value … [--help] [--quiet] [--version]", ""]
    for name in commands():
        doc = docstring(f"vlprompt.cli.{name.replace('-', '_')}")  # read and not run, which for all takes seconds
        lines.append(f"  {name:<18} {doc.splitlines()[0]}")
    return "\n".join([*lines, "", "vlprompt COMMAND --help tells what a command takes."])


@command()
def main(argv: Sequence[str]) -> int:
    """Run a command and return its exit status."""
    if not argv:
        print(usage(), file=sys.stderr)
        return 2
    name, *rest = argv
    if name in ("--help", "-h"):
        print(usage())
        return 0
    if name == "--version":
        print(f"vlprompt {__version__}")
        return 0
    if name not in commands():
        raise VlpromptError(f"unknown command '{name}': {nearest(name, commands())}")
    run: Command = module(name).main
    return run(rest)


if __name__ == "__main__":
    sys.exit(main())
