"""The documentation site: it builds without a warning and without a network, and its pages say what the code does."""

from __future__ import annotations

import configparser
import importlib.util
import logging
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import yaml

import vlprompt
from vlprompt.cli.__main__ import commands

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
ELSEWHERE = {"changelog.md", "contributing.md", "embedded_model.md"}  # made by scripts/site/hooks.py


def load(path: Path) -> ModuleType:
    """A script as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site's folder."""
    pytest.importorskip("mkdocs", reason='the site needs pip install "vlprompt[docs]"')
    pytest.importorskip("material", reason='the site needs pip install "vlprompt[docs]"')
    from mkdocs.commands.build import build
    from mkdocs.config import load_config
    from mkdocs.exceptions import Abort

    folder, warned = tmp_path_factory.mktemp("site"), []
    listener = logging.Handler(logging.WARNING)
    listener.emit = lambda record: warned.append(record.getMessage())
    logging.getLogger("mkdocs").addHandler(listener)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)

        def refuse(*_: object) -> None:
            raise AssertionError("the site asked for a network")

        patch.setattr(socket.socket, "connect", refuse)
        config = load_config(str(ROOT / "mkdocs.yml"), strict=True, site_dir=str(folder))
        config.plugins.on_startup(command="build", dirty=False)
        try:
            build(config)
        except Abort:
            pytest.fail("\n".join(["mkdocs build --strict:", *warned]))
        finally:
            config.plugins.on_shutdown()
            logging.getLogger("mkdocs").removeHandler(listener)
    return folder


def nav_pages(entry: object) -> Iterator[str]:
    """Paths of the pages in a navigation."""
    if isinstance(entry, str):
        yield entry
    for below in entry.values() if isinstance(entry, dict) else entry if isinstance(entry, list) else ():
        yield from nav_pages(below)


def test_every_page_of_the_navigation_exists() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = list(nav_pages(yaml.safe_load(text)["nav"]))
    assert len(pages) == len(set(pages)) > 25
    assert [page for page in pages if page not in ELSEWHERE and not (DOCS / page).is_file()] == []


def test_the_site_builds_strictly_and_offline(site: Path) -> None:
    for page in ("index", "concepts", "howto/ray", "methods/index", "methods/maple", "datasets", "contributing"):
        assert (site / f"{page}.html").is_file()
    assert "KgCoOp" in (site / "configs/kgcoop/base_to_new.html").read_text(encoding="utf-8")


def test_nothing_on_a_page_comes_from_a_network(site: Path) -> None:
    fetched = re.compile(r"<(?:script|img|iframe)[^>]*\ssrc=.?https?:|<link[^>]*rel=.?stylesheet[^>]*href=.?https?:")
    assert [page.name for page in site.rglob("*.html") if fetched.search(page.read_text(encoding="utf-8"))] == []


def test_wide_tables_have_the_room_of_the_contents(site: Path) -> None:
    contents = re.compile(r'class="md-sidebar md-sidebar--secondary"[^>]*?( hidden)?>')
    hidden = {
        name: contents.search((site / name).read_text(encoding="utf-8"))[1]
        for name in ("index.html", "methods/index.html")
    }
    assert hidden == {"index.html": None, "methods/index.html": " hidden"}


def test_pictures_are_in_their_pages_and_follow_the_palette(site: Path) -> None:
    page = (site / "concepts.html").read_text(encoding="utf-8")
    assert 'class="picture concepts"' in page
    assert "var(--md-default-fg-color" in page
    assert page.count("<svg") == page.count("</svg>")


def test_every_public_name_is_in_the_reference(site: Path) -> None:
    pages = "".join(page.read_text(encoding="utf-8") for page in (site / "reference").glob("*.html"))
    documented = set(re.findall(r'id="([\w.]+)"', pages))
    assert [n for n in vlprompt.__all__ if n != "__version__" and f"vlprompt.{n}" not in documented] == []
    for name in ("analysis", "data", "report"):
        exported = [n for n in importlib.import_module(f"vlprompt.{name}").__all__ if not n.isupper()]
        assert [n for n in exported if not {f"vlprompt.{n}", f"vlprompt.{name}.{n}"} & documented] == []


def test_the_pages_of_commands_and_public_names_are_up_to_date(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "scripts")
    make_docs = load(ROOT / "scripts" / "make_docs.py")
    for page, text in (("commands", make_docs.command_page()), ("start", make_docs.surface_page())):
        assert (DOCS / f"reference/{page}.md").read_text(encoding="utf-8") == text, "run python scripts/make_docs.py"
    shown = {name for names in make_docs.SURFACE.values() for name in names}
    assert shown == set(vlprompt.__all__) - {"__version__"}


def test_what_help_prints_is_on_the_page_of_the_commands() -> None:
    page = (DOCS / "reference/commands.md").read_text(encoding="utf-8")
    for name in commands():
        assert f"\n## vlprompt {name}\n" in page
        module = importlib.import_module(f"vlprompt.cli.{name.replace('-', '_')}")
        assert getattr(module, "USAGE", "python -m vlprompt.train") in page


def test_the_start_page_has_the_readmes_figures() -> None:
    def table(page: Path) -> list[str]:
        return re.search(r"^\| 16 shots.*?\n\n", page.read_text(encoding="utf-8"), re.M | re.S)[0].split("\n")

    assert table(DOCS / "index.md") == table(ROOT / "README.md")


# The palette


def relative_luminance(colour: str) -> float:
    """Of ``#rrggbb``, as WCAG 2 defines it."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """Of two colours, from 1 to 21."""
    low, high = sorted([relative_luminance(one), relative_luminance(other)])
    return (high + 0.05) / (low + 0.05)


def test_colours_can_be_read_in_both_schemes() -> None:
    text = (DOCS / "assets/site.css").read_text(encoding="utf-8")
    rules = dict(re.findall(r"^(\[.*?) \{\n(.*?)\n\}", text, re.M | re.S))
    read = {selector: dict(re.findall(r"--md-([\w-]+): (#\w{6});", body)) for selector, body in rules.items()}
    light = {"default-bg-color": "#ffffff"}
    light |= read['[data-md-color-primary="custom"]'] | read['[data-md-color-accent="custom"]']
    slate = '[data-md-color-scheme="slate"]'
    dark = light | read[slate]
    dark |= read[f'{slate}[data-md-color-primary="custom"]'] | read[f'{slate}[data-md-color-accent="custom"]']
    assert dark["default-bg-color"] != light["default-bg-color"]
    for scheme in (light, dark):
        assert contrast(scheme["primary-fg-color"], scheme["primary-bg-color"]) >= 4.5
        for colour in ("typeset-a-color", "accent-fg-color"):
            assert contrast(scheme[colour], scheme["default-bg-color"]) >= 4.5


# The design


def rooms() -> dict[str, int]:
    """Rooms of docs/design.md and the row that each stands in."""
    text = (DOCS / "design.md").read_text(encoding="utf-8")
    table = re.search(r"^\| room \|.*?\n\n", text, re.M | re.S)[0].strip().splitlines()[2:]
    return {name: row for row, line in enumerate(table) for name in re.findall(r"`([\w/]+)`", line.split("|")[1])}


def room_of(path: Path) -> str:
    """The room that a source file belongs to."""
    package, *rest = path.relative_to(ROOT).with_suffix("").parts
    if package != "vlprompt":
        return f"{package}/"
    return rest[0] if len(rest) == 1 else f"{rest[0]}/"


def sources() -> list[Path]:
    """Source files of the library, but for the package's own surface and data packages."""
    found = [*ROOT.glob("vlprompt/**/*.py"), *ROOT.glob("datasets_registry/**/*.py")]
    return sorted(path for path in found if path != ROOT / "vlprompt/__init__.py")


def test_the_design_names_every_room_and_no_other() -> None:
    assert {room_of(path) for path in sources()} | {"published/"} == set(rooms())


def test_an_import_never_points_up_and_rooms_have_no_cycles(capsys: pytest.CaptureFixture[str]) -> None:
    """Held by import-linter, lazy imports and siblings included; its layers are those of the design, upside down."""
    importlinter = pytest.importorskip(
        "importlinter.cli", reason='the order of rooms needs pip install "vlprompt[dev]"'
    )
    config = configparser.ConfigParser()
    config.read(ROOT / ".importlinter")
    layers = config["importlinter:contract:rooms"]["layers"].split()
    named = [layer.removeprefix("vlprompt.") for layer in layers if layer not in (":", "|")]
    order = {name.rstrip("/"): row for name, row in rooms().items()}
    assert set(order) - set(named) == {"published", "moved"}
    assert [order[name] for name in named] == sorted((order[name] for name in named), reverse=True)
    status = importlinter.lint_imports(config_filename=str(ROOT / ".importlinter"), no_cache=True)
    assert status == 0, capsys.readouterr().out
