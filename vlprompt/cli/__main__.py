"""The entry point of ``vlprompt COMMAND key=value …``: finds the command's module and passes it the arguments."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

from vlprompt.cli._candidates import answer, command_names

if TYPE_CHECKING:
    from vlprompt.cli._shared import Command


def commands() -> list[str]:
    """Names of the commands: the modules of this package that do not start with an underscore, with dashes."""
    return command_names()


def module(name: str) -> ModuleType:
    """The module of a command."""
    return import_module(f"vlprompt.cli.{name.replace('-', '_')}")


def usage() -> str:
    """Return what ``vlprompt --help`` prints."""
    from vlprompt.base.static_inspection import docstring

    lines = ["vlprompt COMMAND key=value … [--help] [--quiet] [--version]", ""]
    for name in commands():
        doc = docstring(
            f"vlprompt.cli.{name.replace('-', '_')}"
        )  # without importing the module, which takes seconds for all
        lines.append(f"  {name:<18} {doc.splitlines()[0]}")
    hint = "vlprompt COMMAND --help shows the settings of a command; --key value and --key=value also work."
    return "\n".join([*lines, "", hint])


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status; ``argv`` is by default this process's."""
    argv = sys.argv[1:] if argv is None else argv
    if list(argv[:2]) == ["completion", "words"]:  # runs at each press of TAB, so before anything else is imported
        return answer(argv[2:])
    from vlprompt.cli._shared import command

    return command()(_dispatch)(argv)


def _dispatch(argv: Sequence[str]) -> int:
    if not argv:
        print(usage(), file=sys.stderr)
        return 2
    name, *rest = argv
    if name in ("--help", "-h"):
        print(usage())
        return 0
    if name == "--version":
        from vlprompt.version import __version__

        print(f"vlprompt {__version__}")
        return 0
    if name not in commands():
        from vlprompt.errors import VlpromptError, nearest

        raise VlpromptError(f"unknown command '{name}': {nearest(name, commands())}")
    run: Command = module(name).main
    return run(rest)


if __name__ == "__main__":
    sys.exit(main())
