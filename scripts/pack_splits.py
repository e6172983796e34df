"""Pack CoOp's published splits into datasets_registry/splits/: `python scripts/pack_splits.py DIR`.

DIR holds the files linked from https://github.com/KaiyangZhou/CoOp/blob/main/DATASETS.md, `split_zhou_<Dataset>.json`.
The same input gives the same bytes; what is written is unpacked again and compared with the original.
"""

from __future__ import annotations

import sys
from pathlib import Path

from datasets_registry.card import card_names, load_card
from datasets_registry.readers.packaged import FOLDER, original_bytes, pack, packaged_content
from vlprompt.base.files import atomic_write


def main(source: Path) -> None:
    """Pack every published split that is in a folder."""
    for card in map(load_card, card_names()):
        path = source / card.split_file
        if card.reader != "coop_json" or not path.is_file():
            continue
        original = path.read_bytes()
        target = FOLDER / f"{card.name}.tsv"
        with atomic_write(target) as temporary:
            temporary.write_text(pack(path.name, original), "utf-8", newline="\n")
        if original_bytes(packaged_content(card.name)) != original:
            target.unlink()
            raise SystemExit(f"{path} does not survive packing: nothing is kept of it")
        print(f"{target.name}: {len(original):,} -> {target.stat().st_size:,} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
