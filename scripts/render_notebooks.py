"""Execute the notebooks and write what the docs show of them: docs/notebooks/NAME.md, and its pictures.

python scripts/render_notebooks.py [NAME...]      # such as 01_first_learner; all unless given

The notebooks themselves are kept without outputs: what an editor has left in them is taken out on the way.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbconvert.exporters import MarkdownExporter
from nbformat import NotebookNode
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = ROOT / "notebooks"
PAGES = ROOT / "docs" / "notebooks"
MADE = "<!-- made by scripts/render_notebooks.py: do not edit -->"
COLOURS = 256  # in a picture of the docs, whose file is then a fifth as large
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
# one thread: small tensors gain nothing from more; and what tqdm says of a missing widget is no news to a reader
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore:IProgress not found"}
LOCAL = re.compile("|".join(map(re.escape, {tempfile.gettempdir(), str(ROOT), str(Path.home()) + "/"})))


def names() -> list[str]:
    """The notebooks' names in order."""
    return sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))


def read(name: str) -> NotebookNode:
    """Read a notebook."""
    return nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)


def strip(notebook: NotebookNode) -> str:
    """The notebook as it is stored: no outputs, no counts, no editor metadata, cells named by their position."""
    kept = nbformat.v4.new_notebook(metadata=METADATA)
    for i, cell in enumerate(notebook.cells):
        make = nbformat.v4.new_code_cell if cell.cell_type == "code" else nbformat.v4.new_markdown_cell
        kept.cells.append(make(cell.source, id=f"cell-{i:02d}"))
    return nbformat.writes(kept, version=4) + "\n"


def execute(name: str, folder: Path) -> NotebookNode:
    """Run a notebook from top to bottom in a folder, and return it with its outputs."""
    notebook = read(name)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # so that `!vlprompt` is this version
    # on a busy machine outputs may arrive late, and nbclient would continue without them
    options = {"timeout": 600, "iopub_timeout": 120, "kernel_name": "python3", "coalesce_streams": True}
    client = NotebookClient(notebook, resources={"metadata": {"path": str(folder)}}, **options)
    return client.execute(env=os.environ | ENVIRONMENT | {"PATH": path})


def as_shown(source: str) -> str:
    """A cell's text as on its page, where links to files of the docs are relative to the docs."""
    return source.replace("](../docs/", "](../")


def render(name: str, notebook: NotebookNode) -> dict[Path, bytes]:
    """A notebook's page and pictures, by their paths.

    Raises:
        ValueError: a path of this machine stands in an output.
    """
    exporter = MarkdownExporter()
    body, resources = exporter.from_notebook_node(notebook, {"unique_key": name, "output_files_dir": f"{name}_files"})
    local = LOCAL.search(body)
    if local:
        raise ValueError(f"{name}: a path of this machine stands in the outputs: {local[0]}")
    page = f"{MADE}\n\n{tidy(as_shown(body)).strip()}\n"
    pictures = {PAGES / path: smaller(png) for path, png in resources["outputs"].items()}
    return {PAGES / f"{name}.md": page.encode()} | pictures


def tidy(page: str) -> str:
    """Describe pictures by the heading above them, for readers who cannot see them, and remove repeated empty lines."""
    heading, lines, fenced = "", [""], False
    for line in page.splitlines():
        fenced ^= line.startswith("```")
        if not fenced:
            line = line.rstrip()
            heading = line.lstrip("# ") if line.startswith("#") else heading
        if line or lines[-1] or fenced:
            lines.append(line.replace("![png](", f"![{heading}]("))
    return "\n".join(lines)


def smaller(png: bytes) -> bytes:
    """The picture with fewer colours."""
    image = Image.open(io.BytesIO(png)).convert("RGB").quantize(COLOURS, Image.Quantize.MAXCOVERAGE, dither=0)
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return file.getvalue()


def main() -> int:
    """Write stripped notebooks, pages and pictures."""
    for name in sys.argv[1:] or names():
        (NOTEBOOKS / f"{name}.ipynb").write_text(strip(read(name)), encoding="utf-8")
        with tempfile.TemporaryDirectory() as folder:
            files = render(name, execute(name, Path(folder)))
        shutil.rmtree(PAGES / f"{name}_files", ignore_errors=True)
        for path, content in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        print(f"{name}: {len(files) - 1} pictures, {sum(map(len, files.values())) / 1024:.0f} KB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
