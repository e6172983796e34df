"""``vlprompt/typed.pyi``: ``create_learner`` and ``run`` as editors and type checkers see them, an overload a method.

Made from the registry by make_docs.py, so that whoever adds a method has nothing else to write.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any, Union, get_args, get_origin, get_type_hints

from vlprompt import create_learner, run
from vlprompt.base.settings import RunConfig
from vlprompt.learner import METHODS, PromptLearner
from vlprompt.runs.settings import resolve

HEAD = '''\
# made by scripts/make_docs.py: do not edit
# fmt: off
# ruff: noqa
"""``create_learner`` and ``run`` with the settings of each method, for editors and type checkers; nothing imports it.

A call of a known method that its own overload does not fit gives ``SettingsDoNotFit``, which is an error to a type
checker as soon as it is used. Other names, those of plugins and those that only a run of the program knows, take any
setting.
"""

# mypy: disable-error-code="overload-overlap"
from collections.abc import Sequence
from os import PathLike
from typing import Any, Literal, TypedDict, overload

from typing_extensions import Unpack

from vlprompt.clip.frozen import FrozenCLIP
from vlprompt.evaluation.results import Result
from vlprompt.learner.contract import PromptLearner
'''
MISFIT = '''
class SettingsDoNotFit:
    """Nothing: the call raises, since a setting is not the method's or is of another type.

    A dictionary that is handed in with ``**`` may be right all the same: annotate it as one of these classes, or as
    ``dict[str, Any]``.
    """
'''
NOT_ITS_OWN = {"method: Known": "SettingsDoNotFit", "method: str": ""}  # the last overloads, and what they return
PATHS = {"checkpoint", "config", "data_root", "descriptions", "init_from", "output", "teacher", "text"}  # or texts
ANYTHING = {"dataset"}  # a loaded dataset, or a name


def stub() -> str:
    """The text of the stub."""
    classes = {name: METHODS.get(name) for name in METHODS.names()}
    parts = [HEAD, *(f"from {cls.__module__} import {cls.__name__}\n" for cls in classes.values())]
    parts += ["\nStrPath = str | PathLike[str]\n", f"Known = Literal[{', '.join(map(repr, classes))}]\n"]
    parts += [*settings(classes), MISFIT]
    usual, about = resolve().config.method, {name: f'\n    """{METHODS.info(name).summary}"""' for name in classes}
    for name, cls in classes.items():
        parts += [overload(create_learner, f"method: Literal[{name!r}]", settings_of(name), cls.__name__, about[name])]
    parts += [overload(create_learner, first, returned=returned) for first, returned in NOT_ITS_OWN.items()]
    for name in classes:
        method = f"method: Literal[{name!r}]" + " = ..." * (name == usual)
        parts += [overload(run, method, settings_of(name, "Run"), about=about[name])]
    of_a_file = {"config: StrPath": ""}  # which may contain the method
    return "".join(parts + [overload(run, first, returned=kind) for first, kind in (NOT_ITS_OWN | of_a_file).items()])


def settings(classes: dict[str, type[PromptLearner]]) -> list[str]:
    """The classes of settings: of every method, of a run, and two per method, without and with those of a run."""
    shared, running = get_type_hints(PromptLearner.Config), get_type_hints(RunConfig)
    del running["method"]  # each overload has its own
    parts = [typed_dict("MethodSettings", shared), typed_dict("RunSettings", running)]
    for name, cls in classes.items():
        own = get_type_hints(cls.Config)
        as_shared = all(own[key] == hint for key, hint in shared.items())  # a TypedDict may not change a key's type
        base, without = ("MethodSettings", shared) if as_shared else ("TypedDict", ())
        parts += [typed_dict(settings_of(name), own, base, without)]
        parts += [typed_dict(settings_of(name, "Run"), {}, f"RunSettings, {settings_of(name)}")]
    return parts


def settings_of(method: str, kind: str = "Settings") -> str:
    """The name of a class of settings: ``ZeroShotSettings`` of ``zero_shot``."""
    return "".join(part.capitalize() for part in method.split("_")) + kind


def typed_dict(name: str, hints: dict[str, Any], base: str = "TypedDict", without: Iterable[str] = ()) -> str:
    """The source of a class of keys and their types, all optional."""
    lines = [f"    {key}: {written(key, hint)}\n" for key, hint in hints.items() if key not in without]
    return f"\nclass {name}({base}, total=False):" + ("\n" + "".join(lines) if lines else " ...\n")


def written(key: str, hint: Any) -> str:
    """The source of a type."""
    if key in ANYTHING:
        return "Any"
    if get_origin(hint) is Union:
        return " | ".join(written(key, one) for one in get_args(hint))
    text = inspect.formatannotation(hint).replace("typing.", "").replace("NoneType", "None")
    return text.replace("str", "StrPath") if key in PATHS else text


def overload(
    function: Callable[..., Any], first: str, settings: str = "", returned: str = "", about: str = " ..."
) -> str:
    """One signature of a function that takes settings by name.

    Args:
        function: whose other parameters it repeats.
        first: the parameter that tells this overload from others.
        settings: the class of its settings; by default it takes any.
        returned: in place of what the function says.
        about: its body.
    """
    signature = inspect.signature(function)
    kept = [p for name, p in signature.parameters.items() if name not in ("method", "settings")]
    places = [f"{p.name}: {p.annotation}" for p in kept if p.kind is p.POSITIONAL_OR_KEYWORD]
    named = [f"{p.name}: {p.annotation} = ..." for p in kept if p.kind is p.KEYWORD_ONLY]
    order = [first, *places, "*", *named] if places else ["*", first, *named]
    taken = ", ".join([*order, f"**settings: {f'Unpack[{settings}]' if settings else 'Any'}"])
    return f"\n@overload\ndef {function.__name__}({taken}) -> {returned or signature.return_annotation}:{about}\n"
