"""Put reports into the pages that show them, when their runs have been made anew.

    python scripts/make_tables.py docs/methods/heads.md

In a page, what stands between ``<!-- report: FOLDER … -->`` and ``<!-- end of report -->`` is replaced by what
``vlprompt report FOLDER … format=markdown`` says; folders, and patterns of them, are those of the working directory.
``key=value`` beside the folders is of the layout of papers.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from vlprompt.base.files import atomic_write
from vlprompt.report import Layout, make_report

PLACE = re.compile(r"(<!-- report: (.+?) -->\n).*?(<!-- end of report -->)", re.DOTALL)


def with_reports(page: str) -> str:
    """The text of a page with its reports made from the present result files."""
    return PLACE.sub(lambda found: f"{found[1]}\n{_report(found[2].split())}\n{found[3]}", page)


def _report(words: list[str]) -> str:
    """The tables without headings, since pages have their own."""
    asked = dict(word.split("=") for word in words if "=" in word)
    folders = [folder for word in words if "=" not in word for folder in sorted(Path().glob(word)) or [word]]
    report = make_report(folders, layout=Layout(**asked) if asked else None)
    return re.sub(r"\A### .*\n\n", "", report.text("markdown"))


def main() -> None:
    """Rewrite the given pages."""
    for path in map(Path, sys.argv[1:]):
        page = with_reports(path.read_text(encoding="utf-8"))
        with atomic_write(path) as temporary:
            temporary.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
