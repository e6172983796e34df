"""Readers: each turns a card, the dataset's folder and a variant into a ``DatasetSplits``."""

from datasets_registry.readers import (  # noqa: F401, they register themselves
    coop_json,
    domains,
    embedded,
    folder,
    imagenet,
    official,
    own,
    tables,
)
from datasets_registry.readers.base import Reader, readers

__all__ = ["Reader", "readers"]
