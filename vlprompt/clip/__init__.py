"""The frozen model: loading it, exact prompted encoding on views of its towers, and edits inside them."""

from vlprompt.base.wiring import formerly
from vlprompt.clip.edits import Edit, FullLength
from vlprompt.clip.frozen import FrozenCLIP, natural_name, same_names
from vlprompt.clip.loading import TINY, load_clip, shared_clip

__all__ = ["TINY", "Edit", "FrozenCLIP", "FullLength", "load_clip", "natural_name", "same_names", "shared_clip"]

__getattr__ = formerly("vlprompt.clip.frozen")
