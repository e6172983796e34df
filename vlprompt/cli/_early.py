"""Settings of a run that are refused before torch is imported, in the sentences of those who refuse them afterwards."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from vlprompt.base.declared import fields_of, registered
from vlprompt.base.plugins import load_installed
from vlprompt.base.schema import settings_of
from vlprompt.base.settings import RunConfig
from vlprompt.errors import VlpromptError, nearest
from vlprompt.evaluation.protocols import PROTOCOLS
from vlprompt.training.shipped import read_defaults


def refuse_early(settings: Mapping[str, Any]) -> None:
    """Raise for the first setting that no torch is needed to refuse: names, keys, and values that every run has.

    Where a file or a plugin has a say, nothing is refused here.

    Raises:
        VlpromptError: as ``vlprompt.runs.settings.resolve`` would.
    """
    load_installed()
    if "config" in settings or "vlprompt.learner.registration" in sys.modules:
        return
    method = str(settings.get("method", read_defaults()["method"]))
    shipped = registered("vlprompt.methods")
    if method not in shipped:
        raise VlpromptError(f"unknown method '{method}': {nearest(method, shipped)}")
    if "protocol" in settings:
        PROTOCOLS.info(str(settings["protocol"]))
    own, of = fields_of(shipped[method]), f" for method={method}"
    running = [each.name for each in fields(RunConfig)]
    for key, value in settings.items():
        if key in running:
            settings_of(RunConfig, {key: value}, of=of)
        elif own is not None and key not in own:
            raise VlpromptError(f"unknown key '{key}'{of}: {nearest(key, [*running, *own])}")
