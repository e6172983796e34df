"""A cache of images for heads: features as keys, classes as values."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from vlprompt.errors import VlpromptError
from vlprompt.learner import PromptLearner


def cache_logits(affinity: Tensor, labels: Tensor, n_classes: int) -> Tensor:
    """Sum affinities (B, N) over the keys of each class, φ(fF)·L of eq. 5 (B, C); L is not created.

    Args:
        affinity: affinities of B images to N keys.
        labels: class of each key (N,).
        n_classes: number of classes C.
    """
    return affinity.new_zeros(affinity.shape[0], n_classes).index_add(1, labels.long(), affinity)


class ImageCache(PromptLearner):
    """A learner with a cache of images, empty until it is filled.

    Attributes:
        keys: normalised image features (N, D).
        labels: their classes (N,), as floats.
    """

    keys: Tensor
    labels: Tensor

    def make_room(self, count: int) -> None:
        """Create buffers for N keys (N, D) and their classes (N,), as floats, since only floats are saved."""
        self.hold(torch.zeros(count, self.clip.embed_dim, device=self.clip.device))
        self.register_buffer("labels", torch.zeros(count, device=self.clip.device))

    def hold(self, keys: Tensor) -> None:
        """Register the keys (N, D), as a buffer."""
        self.register_buffer("keys", keys)

    def reserve(self, shapes: Mapping[str, torch.Size]) -> None:
        """Create buffers for as many keys as were saved."""
        self.make_room(next(iter(shapes.get("labels", ())), 0))  # a wrong shape is refused when it is loaded

    def load_learnables(self, state: Mapping[str, Tensor], source: str) -> None:
        """Load a cache, and check that its labels are classes of the learner."""
        super().load_learnables(state, source)
        odd = self.labels[(self.labels < 0) | (self.labels >= len(self.learnt_names)) | (self.labels % 1 != 0)]
        if len(odd):
            raise VlpromptError(f"{source} do not fit {self.method}: {float(odd[0]):g} is not the label of a class")

    @torch.no_grad()
    def fill(self, keys: Tensor, labels: Tensor) -> None:
        """Replace the content of the cache by keys (N, D) with classes (N,)."""
        self.make_room(len(keys))
        self.keys.copy_(keys)
        self.labels.copy_(labels)
