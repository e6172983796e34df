import re
from pathlib import Path

from datasets_registry.card import card_names
from datasets_registry.docs import PAGE, render

HOWTO = PAGE.parent / "howto/own_data.md"


def test_page_is_what_the_cards_say():
    assert PAGE.read_text("utf-8") == render(), "run python -m datasets_registry.docs"


def test_page_names_every_dataset_and_its_links_hold():
    page = render()
    headings = set(re.findall(r"^### (\w+)$", page, re.MULTILINE))
    assert headings == set(card_names())
    assert set(re.findall(r"\(#(\w+)\)", page)) == headings
    assert HOWTO.exists()


def test_guide_to_own_data_works_as_written(tmp_path: Path, monkeypatch, capsys):
    from PIL import Image

    from vlprompt.cli.data import main
    from vlprompt.data import load_split

    guide = HOWTO.read_text("utf-8")
    for name in ("cat", "red_fox"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for i in range(10):
            Image.new("RGB", (8, 8), (i, 0, 0)).save(tmp_path / f"pets/{name}/{i:04d}.jpg")
    monkeypatch.chdir(tmp_path)
    command = re.search(r"^vlprompt data (.*)$", guide, re.MULTILINE).group(1)
    assert main([*command.split(), "--quiet"]) == 0
    assert capsys.readouterr().out.startswith("folder:pets: ok; 2 classes")
    names = {"cat": "tabby cat"}
    assert load_split("folder:pets", class_names=names).class_names == ("tabby cat", "red fox")
