import re

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
