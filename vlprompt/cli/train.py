"""Train a learner and test it: ``python -m vlprompt.train key=value …``."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table

from datasets_registry.listed import outlives_process
from vlprompt.base.layout import CHOICE, LEARNER, RESULT
from vlprompt.base.plugins import used
from vlprompt.base.reporter import make_console
from vlprompt.base.settings import AUTO
from vlprompt.cli._early import refuse_early
from vlprompt.cli._shared import command, parse
from vlprompt.version import __version__

if TYPE_CHECKING:
    from vlprompt.runs.settings import Resolved

COMMAND = "python -m vlprompt.train"
# what a comparison must have in common with the run; the methods' own recipes say the rest
IN_COMMON = (
    *("data_root", "split", "templates", "shots", "allow_fewer", "views", "unlabelled", "region"),
    *("targets", "held_out", "backbone", "pretrained", "checkpoint", "precision", "selection", "limit", "output"),
)


@command()
def main(argv: Sequence[str]) -> int:
    """Train, test, print the table and say where the files are."""
    arguments = parse(argv)
    if "--version" in arguments.flags:
        print(f"vlprompt {__version__}")
        return 0
    refuse_early(arguments.settings)
    from vlprompt.evaluation.tables import explain, result_table
    from vlprompt.runs.one import start

    if "--help" in arguments.flags:
        show_help(arguments.settings)
        return 0
    quiet = {"quiet": True} if "--quiet" in arguments.flags else {}
    try:
        resolved, result = start(arguments.settings | quiet)
    except KeyboardInterrupt:
        again = shlex.join(arguments.again(restart=None, resume="true"))
        raise KeyboardInterrupt(f"interrupted; to continue: {COMMAND} {again}") from None
    console = make_console()
    if result.choice and not resolved.config.quiet:
        from vlprompt.choosing.choice import Choice

        console.print(Choice.read(resolved.folder / CHOICE).table())
    console.print(result_table(result))
    if result.method != "zero_shot":
        console.print(explain(result), markup=False)
    if not resolved.config.quiet:
        for name, what in (("learner", resolved.folder / LEARNER), ("result", resolved.folder / RESULT)):
            console.print(f"{name:<8} {what}", markup=False, soft_wrap=True)
        for name, line in next_commands(resolved):
            console.print(f"{name:<8} {line}", markup=False, soft_wrap=True)
    return 0


def next_commands(resolved: Resolved) -> list[tuple[str, str]]:
    """Return commands that come after a run, by name: inspect its mistakes, compare methods, use the learner."""
    from vlprompt.learner.registration import METHODS

    config, folder = resolved.config, shlex.quote(str(resolved.folder))
    plugins = ",".join(used())
    plugin = f"plugin={shlex.quote(f'[{plugins}]' if ',' in plugins else plugins)} " if plugins else ""
    others = [name for name in ("coop", "kgcoop", "promptsrc") if name != config.method]
    dataset = config.dataset if shlex.quote(config.dataset) == config.dataset else f'"{config.dataset}"'
    settings = f"methods=[{','.join([config.method, *others])}] datasets=[{dataset}] protocol={config.protocol}"
    use = ("use", f"vlprompt predict {plugin}learner={folder} IMAGES")
    if not outlives_process(config.dataset):  # commands do not find it
        return [use]
    look = ("look", f"vlprompt inspect {plugin}run={folder}")
    method = METHODS.get(config.method)
    if method.lacks(method.Config()):  # such as a start, which other methods do not take
        return [look, use]
    sweep = f"vlprompt sweep {plugin}{' '.join([settings, *in_common(resolved)])}"
    return [look, ("compare", f"{sweep} && vlprompt report {shlex.quote(config.output)}"), use]


def in_common(resolved: Resolved) -> list[str]:
    """The settings of ``IN_COMMON`` in which a run differs from other methods' usual ones, as ``key=value``."""
    from vlprompt.runs.settings import resolve

    config = resolved.config
    usual = resolve({"method": config.method, "dataset": config.dataset, "protocol": config.protocol}).config
    changed = [(key, getattr(config, key)) for key in IN_COMMON if getattr(config, key) != getattr(usual, key)]
    return [f"{key}={shlex.quote(value if isinstance(value, str) else json.dumps(value))}" for key, value in changed]


def show_help(settings: Mapping[str, Any]) -> None:
    """Print every key with its default and meaning, the method's own last."""
    from vlprompt.runs.auto import describe_auto
    from vlprompt.runs.settings import describe_keys, resolve

    resolved = resolve(settings) if settings.get("method") != AUTO else None
    table = Table(title=f"{COMMAND} key=value … [--quiet] [--help] [--version]", show_lines=False)
    for heading in ("key", "default", "meaning"):
        table.add_column(heading)
    for key, default, meaning in describe_auto() if resolved is None else describe_keys(resolved):
        table.add_row(key, str(default) if isinstance(default, str) else json.dumps(default), meaning)
    console = make_console()
    console.print(table)
    recipe = f"those of the recipe {resolved.recipe.name}" if resolved and resolved.recipe else "the general ones"
    console.print(
        f"The last keys are those of {resolved.config.method if resolved else AUTO}; the defaults are {recipe}. "
        "`--help method=NAME protocol=NAME` shows others.",
        markup=False,
    )
