"""Views of OpenCLIP's text and image towers: with ``blocks``, the only file that knows their internals.

OpenCLIP has two layouts (``CLIP`` has the text tower's parts on the model itself, ``CustomTextCLIP`` and ``CoCa`` have
a ``.text`` module) and several image towers (``VisionTransformer``, ``ModifiedResNet``, timm). All other code uses a
``TextTower`` and a ``VisionTower``, which say what they are capable of.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, cast

import torch
from open_clip.modified_resnet import ModifiedResNet
from open_clip.transformer import TextTransformer, VisionTransformer
from torch import Tensor, nn

from vlprompt.clip.blocks import Block
from vlprompt.clip.edits import Edit
from vlprompt.errors import VlpromptError


def unwrapped(module: nn.Module) -> nn.Module:
    """The module inside wrappers of torch.compile, DataParallel and DistributedDataParallel."""
    parallel = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    inner = module.module if isinstance(module, parallel) else getattr(module, "_orig_mod", None)
    return module if inner is None else unwrapped(inner)


def plain_model(model: nn.Module) -> nn.Module:
    """The OpenCLIP model inside any wrappers.

    Raises:
        VlpromptError: it is not a model of OpenCLIP, or it is scripted, quantised or without weights.
    """
    model = unwrapped(model)
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        raise VlpromptError("a scripted model (torch.jit) hides its towers: give the model that was scripted")
    if not all(isinstance(value, Tensor) and not value.is_meta for value in model.state_dict().values()):
        raise VlpromptError(
            f"{type(model).__name__} has quantised weights or none (meta device): give it as it was loaded"
        )
    try:
        TextTower(model), VisionTower(model), model.logit_scale, model.encode_text
    except AttributeError as error:
        raise VlpromptError(
            f"{type(model).__name__} is not an OpenCLIP model ({error}): give one from open_clip.create_model, or "
            "load_clip(NAME, checkpoint=FILE)"
        ) from error
    if getattr(unwrapped(_open(model).visual), "attn_pool_contrastive", None) is not None:
        raise VlpromptError(
            "an image tower with attentional_pool=parallel or cascade gives features (B, 1, D), which nothing compares "
            "with text: use one with attentional_pool=true, or another pooling"
        )
    return model


def _open(module: nn.Module) -> Any:
    """A module as ``Any``, since torch's types allow only tensors and modules as its attributes."""
    return module


def _blocks(transformer: Any) -> list[Block]:
    """The residual blocks of one of OpenCLIP's own transformers."""
    return [Block(module, layer) for layer, module in enumerate(transformer.resblocks)]


def _causal(mask: Tensor, length: int) -> Tensor:
    """A causal additive mask (length, length) with the dtype and device of another mask."""
    return torch.full_like(mask[:1, :1], float("-inf")).expand(length, length).triu(1)


def _projected(x: Tensor, edits: Sequence[Edit]) -> Tensor:
    """A tower's output x (…, D) in fp32, with edits of it."""
    x = x.float()
    for edit in edits:
        x = edit.projected(x)
    return x


class TextTower:
    """A view of OpenCLIP's text tower in either layout.

    Attributes:
        promptable: whether token embeddings can be replaced by vectors: all towers except Hugging Face's.
        shares_prefix: whether what comes before the class name can be computed once for all classes: causal towers that
            pool at the end-of-text token.
        width, layers, context_length: width d_t, number of blocks, and maximum number L of tokens.
    """

    def __init__(self, model: nn.Module):
        self.model = model
        whole = _open(model)
        flat = not hasattr(model, "text")
        self.module = whole if flat else _open(unwrapped(whole.text))
        self.promptable = flat or isinstance(self.module, TextTransformer)
        self.context_length: int = whole.context_length
        self.blocks = _blocks(self.module.transformer) if self.promptable else []
        self.layers = len(self.blocks)
        self.width, self.shares_prefix = 0, False
        if not self.promptable:
            return
        self.width = self.module.token_embedding.embedding_dim
        self.pool_type: str = self.module.text_pool_type if flat else self.module.pool_type
        self.eos_id: int | None = getattr(self.module, "text_eos_id" if flat else "eos_id", None)
        self.cls_emb: Tensor | None = getattr(self.module, "cls_emb", None)
        self.causal: bool = self.module.attn_mask is not None
        self.shares_prefix = self.causal and self.pool_type in ("argmax", "eos") and self.cls_emb is None

    def matrices(self) -> list[nn.Parameter]:
        """The weights that may be stored in low precision."""
        if not self.promptable:
            return []
        projection = self.module.text_projection
        own = (
            [projection]
            if isinstance(projection, nn.Parameter)
            else list(projection.parameters() if projection else [])
        )
        return [p for block in self.blocks for p in block.matrices()] + own

    def embed(self, ids: Tensor) -> Tensor:
        """Token embeddings in fp32: ids (…,) -> (…, d_t)."""
        embedded: Tensor = self.module.token_embedding(ids)
        return embedded.float()

    @property
    def positions(self) -> Tensor:
        """Positional embedding (L, d_t) in fp32."""
        positions: Tensor = self.module.positional_embedding
        return positions.float()

    def end_of_text(self, ids: Tensor) -> Tensor:
        """Index of the end-of-text token, or of the last token that is not padding: ids (C, L) -> (C,)."""
        if self.pool_type == "eos":
            return (ids == cast(int, self.eos_id)).int().argmax(dim=-1)
        if self.pool_type == "argmax":
            return ids.argmax(dim=-1)
        # other towers pad with a single id up to the end of the row
        return ids.shape[-1] - 1 - (ids != ids[:, -1:]).int().flip(-1).argmax(dim=-1)

    def project(self, x: Tensor, edits: Sequence[Edit] = ()) -> Tensor:
        """Final norm and projection of pooled states: (…, d_t) -> (…, D) in fp32."""
        x = self.module.ln_final(x)
        for edit in edits:
            x = edit.tower_normed("final", x)
        projection: nn.Linear | Tensor | None = self.module.text_projection
        if isinstance(projection, nn.Linear):
            x = projection(x.to(projection.weight.dtype))
        elif projection is not None:
            x = x.to(projection.dtype) @ projection
        return _projected(x, edits)

    def full_mask(self, valid: Tensor) -> Tensor | None:
        """Additive attention mask (T, T) or (C·H, T, T) for whole sequences; None if nothing is masked.

        Args:
            valid: (C, T), False for padding. T is the context length unless edits changed the sequence's length.
        """
        mask: Tensor | None = self.module.attn_mask
        length = valid.shape[1] + (self.cls_emb is not None)
        if mask is not None:  # edits may have lengthened the sequence
            mask = mask[:length, :length] if length <= len(mask) else _causal(mask, length)
        if self.cls_emb is None and not getattr(self.module, "use_pad_mask", False):
            return mask
        pad = self.module.pad_id
        ids = torch.where(valid, pad + 1, pad)  # OpenCLIP derives its mask from ids by comparing with pad_id
        padding: Tensor = self.module._build_additive_mask(ids, length, torch.float32)
        return padding if mask is None else mask.unsqueeze(0) + padding

    def pool_full(self, x: Tensor, end: Tensor) -> Tensor:
        """The pooled states (C, d_t) of whole sequences x (C, L, d_t), given the indices of end-of-text (C,)."""
        if self.cls_emb is not None or self.pool_type == "last":
            return x[:, -1]
        if self.pool_type == "first":
            return x[:, 0]
        return x[torch.arange(len(x), device=x.device), end]


class VisionTower:
    """A view of OpenCLIP's image tower.

    Attributes:
        promptable: whether visual prompt tokens can be added: OpenCLIP's own ViT.
        kind: ``ViT``, ``ResNet`` or the class of another tower, for messages.
        width, layers: width d_v and number of blocks of a ViT; else 0.
        image_size: side S of its square images, in pixels.
        cls_only: whether only CLS is pooled, so that the last block needs no other query.
    """

    def __init__(self, model: nn.Module):
        module = self.module = _open(unwrapped(_open(model).visual))
        self.image_size: int = (
            module.image_size[0] if isinstance(module.image_size, (tuple, list)) else module.image_size
        )
        is_vit = isinstance(module, VisionTransformer)
        self.blocks = _blocks(module.transformer) if is_vit else []
        self.promptable = is_vit
        trunk = getattr(module, "trunk", None)
        if is_vit or isinstance(module, ModifiedResNet):
            self.kind = "ViT" if is_vit else "ResNet"
        else:
            self.kind = type(module if trunk is None else trunk).__name__
        self.layers = len(self.blocks)
        self.width: int = module.conv1.out_channels if is_vit else 0
        self.cls_only: bool = self.promptable and module.pool_type == "tok" and module.attn_pool is None

    def matrices(self) -> list[nn.Parameter]:
        """The weights that may be stored in low precision."""
        if not self.promptable:
            return []
        own = [self.module.conv1.weight] + ([self.module.proj] if self.module.proj is not None else [])
        return [p for block in self.blocks for p in block.matrices()] + own

    @functools.cached_property
    def patch_size(self) -> tuple[int, int]:
        """Patch height and width in pixels (ViT only)."""
        size: tuple[int, int] = self.module.patch_size
        return size

    def embed(self, images: Tensor) -> Tensor:
        """Patches, CLS and positions, before ln_pre: images (B, 3, H, W) -> (B, 1+N, d_v) in fp32."""
        module = self.module
        x: Tensor = module.conv1(images.to(module.conv1.weight.dtype)).float()  # (B, d_v, grid, grid)
        x = x.flatten(2).transpose(1, 2)  # (B, N, d_v)
        cls: Tensor = module.class_embedding.float().expand(x.shape[0], 1, -1)  # len() would fix B in exports
        return torch.cat([cls, x], dim=1) + self.positions

    def ln_pre(self, x: Tensor, edits: Sequence[Edit] = ()) -> Tensor:
        """The norm between embedding and blocks, with edits of it; the identity if the model has none."""
        normed: Tensor = self.module.ln_pre(x)
        for edit in edits:
            normed = edit.tower_normed("pre", normed)
        return normed

    @property
    def positions(self) -> Tensor:
        """Positional embedding (1+N, d_v) of CLS and patches in fp32 (ViT only)."""
        positions: Tensor = self.module.positional_embedding
        return positions.float()

    def final_norm(self, x: Tensor) -> Tensor:
        """The norm before the projection (ViT only), for states (…, d_v)."""
        normed: Tensor = self.module.ln_post(x)
        return normed

    @property
    def projection(self) -> Tensor | None:
        """The projection (d_v, D) of pooled states in fp32 (ViT only); None if the model has none."""
        projection: Tensor | None = self.module.proj
        return None if projection is None else projection.float()

    def project(self, x: Tensor, edits: Sequence[Edit] = ()) -> Tensor:
        """Pool and project states (B, 1+N, d_v), or (B, 1, d_v) if ``cls_only``, to (B, D) in fp32."""
        pooled = self._pool(x, [edit for edit in edits if type(edit).tower_normed is not Edit.tower_normed])
        projection: Tensor | None = self.module.proj
        return _projected(pooled if projection is None else pooled.to(projection.dtype) @ projection, edits)

    def _pool(self, x: Tensor, edits: Sequence[Edit]) -> Tensor:
        """The pooled and normed states (B, d_v), with edits of the final norm."""
        module = self.module

        def normed(x: Tensor) -> Tensor:
            x = self.final_norm(x)
            for edit in edits:
                x = edit.tower_normed("final", x)
            return x

        if self.cls_only:
            return normed(x[:, 0])
        if edits and module.attn_pool is not None:
            name = type(edits[0]).__name__
            raise VlpromptError(f"{name} edits the image tower's final norm, and this one pools by attention")
        if edits and module.final_ln_after_pool:
            return normed(module._global_pool(x)[0])
        pooled: Tensor = module._global_pool(normed(x))[0] if edits else module._pool(x)[0]
        return pooled

    def encode(self, images: Tensor) -> Tensor:
        """The tower's own forward pass, without prompts: (B, 3, H, W) -> (B, D) in fp32."""
        out: Tensor | tuple[Tensor, ...] = self.module(images)
        return (out[0] if isinstance(out, tuple) else out).float()
