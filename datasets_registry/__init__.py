"""One card (YAML) per dataset, and the readers that turn a card and a folder into a ``DatasetSplits``."""

from typing import TYPE_CHECKING

from vlprompt.base.wiring import lazy_exports

if TYPE_CHECKING:
    from datasets_registry.card import Card, load_card
    from datasets_registry.catalog import load_split
    from datasets_registry.listed import dataset_info, list_datasets

__all__ = ["Card", "dataset_info", "list_datasets", "load_card", "load_split"]
__getattr__, __dir__ = lazy_exports(__name__)
