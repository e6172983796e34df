"""A measurement in a Python process of its own, so that no memory and no caches of earlier ones count."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any


class ProcessFailed(Exception):
    """A process ended without a result; the message is the last line of its errors."""


def run_module(module: str, argument: object, environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Run a module with an argument as JSON, and return the JSON in the last line that it prints.

    Args:
        module: its full name.
        argument: what ``json.dumps`` takes.
        environment: the environment variables; None for those of this process.

    Raises:
        ProcessFailed: it failed, or was killed.
    """
    command = [sys.executable, "-W", "ignore", "-m", module, json.dumps(argument)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ProcessFailed((done.stderr.strip().splitlines() or ["killed, probably for want of memory"])[-1])
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result
