"""What every command shares: reading the values of its arguments, and errors in one line.

A command imports torch only where it computes, so that help, lists and errors appear at once: the import takes seconds.
"""

from __future__ import annotations

import errno
import functools
import json
import signal
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from vlprompt.base.environment import enough_memory
from vlprompt.base.files import read_text, text_lines
from vlprompt.base.plugins import use
from vlprompt.base.sanitizing import printable
from vlprompt.base.settings_text import backbone_settings as backbone_settings
from vlprompt.base.settings_text import read_texts, read_value, show
from vlprompt.base.threads import wait_briefly
from vlprompt.cli._arguments import PLUGIN, read
from vlprompt.cli._arguments import check_keys as check_keys  # for the commands, like the next
from vlprompt.cli._arguments import parse as parse
from vlprompt.errors import VlpromptError

if TYPE_CHECKING:
    from datasets_registry.catalog import SplitChoice
    from vlprompt.learner.contract import PromptLearner

INTERRUPTED = 130
Main = Callable[[Sequence[str]], int]


class Command(Protocol):
    """What ``command`` makes: a function from arguments, by default those of this process, to an exit status."""

    def __call__(self, argv: Sequence[str] | None = None) -> int: ...


def names_setting(given: Any, key: str) -> list[str]:
    """Return class names from a list, or from a file: one a line, or a list in .json, .yaml or .yml.

    Raises:
        VlpromptError: the file cannot be read, or it does not hold a list of names.
    """
    if isinstance(given, list):
        return _all_names(given, key)
    path = Path(str(given)).expanduser()
    try:
        if path.suffix == ".json":
            return _all_names(json.loads(read_text(path), parse_int=str, parse_float=str), f"{key}={given}")
        if path.suffix in (".yaml", ".yml"):
            return _all_names(read_texts(read_text(path)), f"{key}={given}")
        return text_lines(path, by_place=True)
    except (ValueError, RecursionError) as error:
        if isinstance(error, VlpromptError):
            raise
        raise VlpromptError(f"{key}={given} cannot be read: {' '.join(str(error).split())}") from error
    except OSError as error:
        raise VlpromptError(
            f"{key}={given} is neither a list nor a readable file with one name per line: "
            f"write {key}=[cat,dog] or {key}=FILE"
        ) from error


def _all_names(given: Any, where: str) -> list[str]:
    if not isinstance(given, list):
        raise VlpromptError(f"{where} must hold a list of names, not {given!r:.60}")
    odd = [name for name in given if not isinstance(name, str) or not name.strip()]
    if odd:
        raise VlpromptError(f"{where} has {odd[0]!r:.60}, which is not a name: put it in quotes if it is one")
    return given


def number_setting(settings: Mapping[str, Any], key: str, least: int = 1, most: int = 10**6) -> int | None:
    """Return a whole number from ``least`` to ``most``, or None if it is not given."""
    value = settings.get(key)
    if value is not None and (type(value) is not int or value < least):
        raise VlpromptError(f"{key} must be a whole number of at least {least}, not {show(value)}")
    if value is not None and value > most:
        raise VlpromptError(f"{key} must be a whole number of at most {most:,}, not {value:,}")
    return value


def flag_setting(settings: Mapping[str, Any], key: str) -> bool:
    """Return whether a flag is set; false if it is not given."""
    value = settings.get(key, False)
    if not isinstance(value, bool):
        raise VlpromptError(f"{key} must be true or false, not {show(value)}")
    return value


def file_setting(settings: Mapping[str, Any], key: str) -> Path | None:
    """Return the file to write, or None if it is not given; a folder is refused before any work is done."""
    path = None if settings.get(key) is None else Path(str(settings[key])).expanduser()
    if path and path.is_dir():
        raise VlpromptError(f"{key}={path} is a folder: give the name of a file")
    return path


def split_setting(settings: Mapping[str, Any]) -> SplitChoice:
    """Return the split that is asked for; ``load_split`` refuses unknown ones."""
    return cast("SplitChoice", str(settings.get("split", "published")))


def load_named_learner(settings: Mapping[str, Any], device: str = "auto") -> PromptLearner:
    """Load ``learner`` by ``vlprompt.runs.named``, which is imported here because that takes seconds."""
    from vlprompt.runs.named import load_named_learner as load

    return load(settings, device)


def command(usage: str | None = None) -> Callable[[Main], Command]:
    """Make a command of a function: without a traceback, bad input ends with status 2 and an interrupt with 130.

    Args:
        usage: what ``--help`` prints; None leaves that flag to the function.
    """

    def make(main: Main) -> Command:
        @functools.wraps(main)
        def guarded(argv: Sequence[str] | None = None) -> int:
            argv = sys.argv[1:] if argv is None else argv
            wait_briefly()
            previous = _interrupt_on_sigterm()
            shown, warnings.showwarning = warnings.showwarning, _show_warning
            try:
                if usage and {"--help", "-h"} & set(argv):
                    print(usage)
                    status = 0
                else:
                    with enough_memory("what this command was told to do"):
                        _import_plugins(argv)
                        status = main(argv)
                if sys.stdout is not None:
                    sys.stdout.flush()  # here, where errors are still reported
                return status
            except VlpromptError as error:
                print(f"error: {_shown(error)}", file=sys.stderr)
                return 2
            except KeyboardInterrupt as interrupt:
                print(_shown(interrupt.args[0] if interrupt.args else "interrupted"), file=sys.stderr)
                return INTERRUPTED
            except BrokenPipeError:  # the reader of a pipe has seen enough
                sys.stdout = None
                return 1
            except OSError as error:  # a folder that may not be written to, a full disk
                place = error.filename2 or error.filename
                if not place and error.errno != errno.ENOSPC:
                    raise
                if not place:
                    sys.stdout = None
                print(f"error: {_shown(place or 'the output')}: {error.strerror}", file=sys.stderr)
                return 2
            finally:
                warnings.showwarning = shown
                if previous is not None:
                    signal.signal(signal.SIGTERM, previous)

        return guarded

    return make


def _import_plugins(argv: Sequence[str]) -> None:
    """Import what ``plugin=`` names."""
    for kind, name, text in read(argv) if any(PLUGIN in argument for argument in argv) else ():
        if kind == "setting" and name == PLUGIN:
            value = read_value(name, text)
            use(value if isinstance(value, list) else str(value))


def _interrupt_on_sigterm() -> Any:
    """Let SIGTERM stop a command as Ctrl-C does; only the main thread may set signals."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    try:
        return signal.signal(signal.SIGTERM, interrupt)
    except ValueError:
        return None


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    if issubclass(category, UserWarning):
        print(f"warning: {_shown(message)}", file=sys.stderr)


def _shown(message: object) -> str:
    return printable(str(message), keep="\n\t")
