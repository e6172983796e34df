"""Datasets, few-shot draws, transforms, batches and feature banks."""

from typing import TYPE_CHECKING

from vlprompt.base.wiring import lazy_exports

if TYPE_CHECKING:
    # of rooms above this one
    from datasets_registry.catalog import (
        load_split,
        register_dataset,
        rename_classes,
    )
    from datasets_registry.descriptions import read_descriptions
    from datasets_registry.listed import dataset_info, list_collections, list_datasets
    from datasets_registry.readers.folder import load_folder
    from vlprompt.data.bank import FeatureBank
    from vlprompt.data.fingerprint import backbone_fingerprint, images_fingerprint
    from vlprompt.data.images import as_rgb, check_items, open_rgb
    from vlprompt.data.joined import join_datasets, mask_other_tasks
    from vlprompt.data.loading import ImageItems, epoch_batches, eval_batches
    from vlprompt.data.modes import to_rgb
    from vlprompt.data.pairs import as_splits, splits_from_hf, splits_from_pairs
    from vlprompt.data.sampling import few_shot_indices, few_shot_split, read_subset, write_subset
    from vlprompt.data.splits import DatasetSplits, Item
    from vlprompt.data.subsets import leave_domain_out, select_domains
    from vlprompt.data.templates import resolve_templates
    from vlprompt.data.transforms import eval_transform, train_transform, transform_fingerprint

__all__ = [
    "DatasetSplits",
    "FeatureBank",
    "ImageItems",
    "Item",
    "as_rgb",
    "as_splits",
    "backbone_fingerprint",
    "check_items",
    "dataset_info",
    "epoch_batches",
    "eval_batches",
    "eval_transform",
    "few_shot_indices",
    "few_shot_split",
    "images_fingerprint",
    "join_datasets",
    "leave_domain_out",
    "list_collections",
    "list_datasets",
    "load_folder",
    "load_split",
    "mask_other_tasks",
    "open_rgb",
    "read_descriptions",
    "read_subset",
    "register_dataset",
    "rename_classes",
    "resolve_templates",
    "select_domains",
    "splits_from_hf",
    "splits_from_pairs",
    "to_rgb",
    "train_transform",
    "transform_fingerprint",
    "write_subset",
]

__getattr__, __dir__ = lazy_exports(__name__)
