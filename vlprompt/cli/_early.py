"""Checks of a run's settings before torch is imported, with the same error messages as the checks afterwards."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from vlprompt.base.plugins import load_installed
from vlprompt.base.static_inspection import fields_of, registered
from vlprompt.errors import VlpromptError, nearest


def refuse_early(settings: Mapping[str, Any]) -> None:
    """Raise for the first wrong setting that can be found without torch: names, keys, and values that every run has.

    Nothing is checked here if a file or a plugin could change what is valid.

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
    if method == AUTO:  # which checks its keys itself
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
    """Raise for the first name that is no method's, unless a plugin may have registered it."""
    from vlprompt.base.settings import AUTO, NO_ROW

    if AUTO in methods:
        raise VlpromptError(NO_ROW)
    shipped = registered("vlprompt.methods")
    for method in methods if only_shipped() else ():
        if str(method) not in shipped:
            raise VlpromptError(f"unknown method '{method}': {nearest(str(method), shipped)}")


def only_shipped() -> bool:
    """Whether only methods that ship can be registered, since the module of registration is not yet imported."""
    load_installed()
    return "vlprompt.learner.registration" not in sys.modules
