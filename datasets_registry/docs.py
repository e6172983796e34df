"""Writes ``docs/datasets.md`` from the cards: ``python -m datasets_registry.docs``."""

from __future__ import annotations

from pathlib import Path

from datasets_registry.card import Card, card_names, collections, load_card
from datasets_registry.readers.packaged import has_packaged, split_words
from vlprompt.base.files import atomic_write

PAGE = Path(__file__).resolve().parent.parent / "docs/datasets.md"
PARTS = ("train", "val", "test")
HEAD = """# Datasets

<!-- Made from datasets_registry/cards by `python -m datasets_registry.docs`; edit the cards. -->

`vlprompt data list` prints this table, `vlprompt data info NAME` the card of a dataset, and
`vlprompt data check NAME data_root=DIR` lists what is there and what is wrong. Your own data needs no card: see
[bring your own data](howto/own_data.md).

`data_root` is the folder that contains the datasets' folders. Counts are those of the split in use; *base* and *new*
are the numbers of test images of the first ⌈C/2⌉ classes and of the others. ≈ marks counts from the literature, since
copies of these datasets differ.
"""
SPLITS = """## Where splits come from

| split | meaning |
| --- | --- |
| included | CoOp's published split, included in the package (MIT licence, see NOTICE). |
| published | a file published by a method's authors, linked in the dataset's section; we may not redistribute it. |
| official | lists or files by the dataset's authors. |
| folders | the folders that the images are in. |
| test only | test images, for methods trained on another dataset. |
| embedded | part of this package; nothing to download. |

If the split is included, only the images are needed. A split file of the authors still takes precedence if it is in
its place; if it differs from the published split, there is a warning, `data check` reports it, and results have
`"source": "own file"`.

Without the published file, `split=generated` makes a split from the images, the same on every machine: 50/20/30 percent
of each class, or the official test images and 80/20 of the rest if there are any; for datasets with several domains,
70/30 of each class and domain. Results then have `"source": "generated"`: numbers on it are not comparable with those
on the published split.

Few-shot draws equal the published ones, including the order: `random.Random(seed)` draws train and then
`min(shots, 4)` val images of each class, in the order in which classes first appear. ImageNet's published draws depend
on an unsorted directory listing and cannot be reproduced; ours draw from sorted paths.

A dataset with several domains has two more names for each of them: `pacs/sketch` is that domain only, and
`pacs/to-sketch` trains on the other domains (train and val of each) and tests on all images of this one.

An interrupted download can be continued; downloads are checked against their MD5 and never unpacked outside their
folder. `vlprompt data prepare NAME from=DIR data_root=DIR` links (or with `mode=move` moves) a torchvision download
into our layout, and extracts UCF101's middle frames from its videos.
"""


def render() -> str:
    """Return the page."""
    cards = [load_card(name) for name in card_names()]
    rows = "\n".join(_row(card) for card in cards)
    named = "\n".join(
        f"| `{name}` | {', '.join(f'`{m}`' for m in members)} |" for name, members in collections().items()
    )
    table = (
        "| name | dataset | classes | train / val / test | base + new | split | get it | licence |\n"
        + "| --- " * 8
        + "|\n"
    )
    return "\n".join(
        [
            HEAD,
            table + rows + "\n",
            f"## Collections\n\n| name | datasets |\n| --- | --- |\n{named}\n",
            SPLITS,
            *(_section(card) for card in cards),
        ]
    )


def _row(card: Card) -> str:
    counts = card.counts
    about = "≈ " if card.approximate else ""
    parts = " / ".join(f"{counts[p]:,}" if counts.get(p) else "–" for p in PARTS) if "test" in counts else ""
    parts = parts or (f"{counts['total']:,} in all" if "total" in counts else "")
    halves = f"{counts['base']:,} + {counts['new']:,}" if "base" in counts else ""
    name = f"[`{card.name}`](#{card.name})"
    get = "embedded" if not card.folder else "download" if card.archives else "by hand"
    cells = [name, card.title, str(card.classes or ""), about + parts, halves, split_words(card), get, card.licence]
    return f"| {' | '.join(cell.strip() for cell in cells)} |"


def _section(card: Card) -> str:
    # the heading is the name alone, so that links to it stay valid
    lines = [f"### {card.name}\n", f"{card.title}. {card.citation}. <{card.homepage}>\n"]
    if card.notes:
        lines.append(f"{card.notes}\n")
    if card.variants:
        lines.append("Datasets: " + ", ".join(f"`{card.name}/{v}`" for v in card.variants) + ".\n")
    if card.domains:
        counts = card.domain_counts
        about = "≈ " if card.approximate else ""
        shown = (f"`{d}`" + (f" ({about}{counts[d]:,})" if d in counts else "") for d in card.domains)
        lines.append("Domains: " + ", ".join(shown) + ".\n")
    if card.templates:
        lines.append("Template: " + ", ".join(f"`{t}`" for t in card.templates) + "\n")
    if card.folder:
        lines.append(f"```\n{card.layout.strip()}\n```\n")
        get = (
            f"`vlprompt data download {card.name} data_root=DIR` fetches the images."
            if card.archives
            else f"The images are at <{card.homepage}>."
        )
        split = f" The published split is linked from <{card.split_page}>." if card.split_file else ""
        if has_packaged(card.name):
            split = f" The published split is included; a file `{card.folder}/{card.split_file}` is used in its place."
        prepared = (
            f" `vlprompt data prepare {card.name} from=DIR data_root=DIR` takes torchvision's copy."
            if card.torchvision
            else ""
        )
        lines.append(get + split + prepared + "\n")
    return "\n".join(lines)


def main() -> None:
    """Write the page."""
    with atomic_write(PAGE) as temporary:
        temporary.write_text(render(), "utf-8")


if __name__ == "__main__":
    main()
