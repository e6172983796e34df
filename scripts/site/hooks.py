"""What the documentation site shows from outside docs/: changelog, contributing, the model card, the recipes.

Links are written for readers of the repository, as paths to its files; here they become links to the site's pages. SVG
pictures are put into their pages, so that they follow the palette.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
PAGES = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "vlprompt/demo/MODEL_CARD.md": "embedded_model.md",
}
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#|/)([^)#\s]+)")
WIDE = re.compile(r"^\|(?:[^|\n]*\|){7,}$", re.M)  # a table of seven columns or more
SVG = re.compile(r"!\[[^\]]*\]\(([^)]+\.svg)\)")


def recipes() -> list[str]:
    """The recipes' paths in the repository."""
    return sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("configs/*/*.yaml"))


def places() -> dict[str, str]:
    """Files of the repository outside docs/ and their pages on the site."""
    return PAGES | {path: path.replace(".yaml", ".md") for path in recipes()}


def on_config(config: Any) -> Any:
    """Add a page for each method to the navigation."""
    methods = next(entry["Methods"] for entry in config["nav"] if "Methods" in entry)
    known = {page for entry in methods for page in entry.values()}
    pages = sorted(path.stem for path in (ROOT / "docs/methods").glob("*.md") if f"methods/{path.name}" not in known)
    methods += [{name: f"methods/{name}.md"} for name in pages]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the pages."""
    for path, uri in places().items():
        text = (ROOT / path).read_text(encoding="utf-8")
        if path.endswith(".yaml"):
            name = path.removeprefix("configs/").removesuffix(".yaml")
            text = f"# Recipe {name}\n\n```yaml\n{text}```\n"
        files.append(File.generated(config, uri, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Put SVG pictures in, point links at the site's pages, and give wide tables the room of the contents."""
    if WIDE.search(markdown):
        page.meta.setdefault("hide", ["toc"])
    moved = places()
    sources = {uri: path for path, uri in moved.items()}
    source = sources.get(page.file.src_uri, f"docs/{page.file.src_uri}")

    def point(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), link[1]))
        if target == "configs":
            target = "docs/methods/README.md"
        uri = moved.get(target, target.removeprefix("docs/"))
        return posixpath.relpath(uri, posixpath.dirname(page.file.src_uri) or ".")

    def picture(link: re.Match[str]) -> str:
        path = ROOT / posixpath.dirname(source) / link[1]
        return re.sub(r"\n\s*", " ", path.read_text(encoding="utf-8"))

    return LINK.sub(point, SVG.sub(picture, markdown))
