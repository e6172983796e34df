"""Settings of a run that are refused before torch is imported, in the sentences of those who refuse them afterwards."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from vlprompt.base.plugins import load_installed
from vlprompt.base.static_inspection import fields_of, registered
from vlprompt.errors import VlpromptError, nearest


def refuse_early(settings: Mapping[str, Any]) -> None:
    """Raise for the first setting that no torch is needed to refuse: names, keys, and values that every run has.

    Where a file or a plugin has a say, nothing is refused here.

    Raises:
        VlpromptError: as ``vlprompt.runs.settings.resolve`` would.
    """
    if "config" in settings or not only_shipped():
        return
    from vlprompt.base.schema import settings_of
    from vlprompt.base.settings import AUTO, RunConfig
    from vlprompt.evaluation.protocols import PROTOCOLS
    from vlprompt.training.shipped_recipes import read_defaults

    method = str(settings.get("method", read_defaults()["method"]))
    if method == AUTO:  # whose keys it looks at itself
        return
    refuse_unknown([method])
    shipped = registered("vlprompt.methods")
    if "protocol" in settings:
        PROTOCOLS.info(str(settings["protocol"]))
    own, of = fields_of(shipped[method]), f" for method={method}"
    running = [each.name for each in fields(RunConfig)]
    for key, value in settings.items():
        if key in running:
            settings_of(RunConfig, {key: value}, of=of)
        elif own is not None and key not in own:
            raise VlpromptError(f"unknown key '{key}'{of}: {nearest(key, [*running, *own])}")


def refuse_unknown(methods: Sequence[Any]) -> None:
    """Raise for the first name that is none of a method, unless a plugin may know it."""
    from vlprompt.base.settings import AUTO, NO_ROW

    if AUTO in methods:
        raise VlpromptError(NO_ROW)
    shipped = registered("vlprompt.methods")
    for method in methods if only_shipped() else ():
        if str(method) not in shipped:
            raise VlpromptError(f"unknown method '{method}': {nearest(str(method), shipped)}")


def only_shipped() -> bool:
    """Whether no other methods than those that ship can have been registered, since nothing has asked for any yet."""
    load_installed()
    return "vlprompt.learner.registration" not in sys.modules
