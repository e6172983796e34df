"""The frozen model: loading it, exact prompted encoding on views of its towers, and edits inside them."""

from typing import TYPE_CHECKING

from vlprompt.base.wiring import lazy_exports

if TYPE_CHECKING:
    from vlprompt.clip.backbones import Backbone, list_backbones
    from vlprompt.clip.catalog import TINY
    from vlprompt.clip.edits import Edit, FullLength
    from vlprompt.clip.frozen import FrozenCLIP
    from vlprompt.clip.loading import load_clip, shared_clip
    from vlprompt.clip.naming import natural_name, same_names

__all__ = [
    "TINY",
    "Backbone",
    "Edit",
    "FrozenCLIP",
    "FullLength",
    "list_backbones",
    "load_clip",
    "natural_name",
    "same_names",
    "shared_clip",
]

__getattr__, __dir__ = lazy_exports(__name__, formerly="vlprompt.clip.frozen")
