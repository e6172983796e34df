"""Print versions, threads and devices, for bug reports."""

from __future__ import annotations

from collections.abc import Sequence

from vlprompt.cli._shared import check_keys, command, parse

USAGE = "vlprompt versions"


@command(USAGE)
def main(argv: Sequence[str]) -> int:
    """Print them."""
    from vlprompt.base.installation import show_versions

    check_keys(parse(argv).settings, ())
    show_versions()
    return 0
