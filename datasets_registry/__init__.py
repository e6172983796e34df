"""One card (YAML) a dataset, and the readers that turn a card and a folder into a ``DatasetSplits``."""

from datasets_registry.card import Card, load_card
from datasets_registry.catalog import dataset_info, list_datasets, load_split
from datasets_registry.readers import readers

__all__ = ["Card", "dataset_info", "list_datasets", "load_card", "load_split", "readers"]
