"""FrozenCLIP: an OpenCLIP model with fixed weights, its tokenizer, image transform and identity."""

from __future__ import annotations

import copy
import functools
import hashlib
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from open_clip.transform import PreprocessCfg, image_transform_v2, merge_preprocess_dict
from torch import Tensor, nn

from vlprompt.base.checks import brief, listed
from vlprompt.base.devices import DTYPES, Precision, check_precision, resolve_device
from vlprompt.base.tensor_checks import check_images
from vlprompt.clip.backbone_tags import PREPROCESSING
from vlprompt.clip.chunks import Chunk
from vlprompt.clip.edits import Edit, edits_of
from vlprompt.clip.naming import ClassNames, all_names, names_and_owners
from vlprompt.clip.naming import natural_name as natural_name
from vlprompt.clip.naming import same_names as same_names
from vlprompt.clip.text import Prompts, encode_prompts, same_beginnings
from vlprompt.clip.towers import TextTower, VisionTower, plain_model
from vlprompt.clip.vision import Place, encode_images
from vlprompt.errors import VlpromptError

Tokenizer = Callable[..., Tensor]
LISTS_KEPT = 64  # of tokenised class prompts
SHORTEST_TEXT = 3  # start of text, a word of one token, end of text


@dataclass(frozen=True)
class ClassTokens:
    """Class prompts as token ids, without the leading start-of-text token.

    Attributes:
        ids: (C, S) ids of "words name.", end-of-text and padding; padded to what the tower needs.
        lengths: (C,) number of tokens up to and including end-of-text.
        name_lengths: (C,) number of tokens of the bare class name.
        n_words: number of leading tokens that are the same fixed words in every prompt.
        beginnings: (C, S) as returned by ``vlprompt.clip.text.same_beginnings``.
        owners: (C,) the class that each row belongs to, if some classes have several names with a row each.
        averaged: whether the rows of a class are averaged into one feature, see ``vlprompt.clip.text.Prompts``.
    """

    ids: Tensor
    lengths: Tensor
    name_lengths: Tensor
    n_words: int
    beginnings: Tensor
    owners: Tensor | None = None
    averaged: bool = True


# Class prompts by model, for as long as it lives.
_TOKENIZED: WeakKeyDictionary[FrozenCLIP, dict[tuple[Any, ...], ClassTokens]] = WeakKeyDictionary()


class FrozenCLIP:
    """A frozen OpenCLIP model, with everything that learners need to know about it.

    Args:
        model: any model that ``open_clip.create_model_and_transforms`` returns, also compiled or wrapped in
            DataParallel. It is set to evaluation mode and moved to ``device``; its parameters become fp32 and no longer
            require gradients. For a ``precision`` other than fp32 a given model object is copied first.
        tokenizer: ``tokenizer(texts, context_length=…) -> (N, L)`` ids, as ``open_clip.get_tokenizer`` returns.
        preprocess: the evaluation transform; by default built from the model's own ``preprocess_cfg``.
        name, pretrained: how the model was requested; part of ``identity()``.
        precision: of the frozen towers. Learnables, norms, attention and losses stay fp32.
        device: a torch device, or ``auto`` for CUDA, then MPS, then the CPU.
        source: arguments with which ``load_clip`` loads this model again; None for a model object.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Tokenizer,
        preprocess: Callable[[Any], Tensor] | None = None,
        *,
        name: str = "custom",
        pretrained: str | None = None,
        precision: Precision = "fp32",
        device: str | torch.device = "auto",
        source: dict[str, Any] | None = None,
    ):
        self.source = source
        self.device = resolve_device(device)
        check_precision(precision, self.device)
        model = plain_model(model)
        if precision != "fp32" and source is None:
            model = copy.deepcopy(model)  # its owner would find its weights rounded
        self.text, self.visual = TextTower(model), VisionTower(model)
        self.model = model.float().eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.name, self.pretrained, self.precision = name, pretrained, precision
        self._weights_hash = self.weights_hash()
        self._cast(DTYPES[precision])
        self.model.to(self.device)
        self._start, self._padding_id = self._probe_tokenizer()
        self._start_ids = self.tokenizer(["a"])[0, : self._start].to(self.device)  # here, for traced graphs
        self.text.shares_prefix &= self._start > 0

        self.preprocess_cfg = merge_preprocess_dict(PreprocessCfg(), getattr(model.visual, "preprocess_cfg", {}))
        self.preprocess_cfg["size"] = self.image_size
        self.preprocess = preprocess or image_transform_v2(PreprocessCfg(**self.preprocess_cfg), is_train=False)
        bias = getattr(model, "logit_bias", None)
        self.logit_scale = float(cast(Tensor, model.logit_scale).detach().exp())
        self.logit_bias = 0.0 if bias is None else float(bias.detach())

    # Facts read from the model

    @property
    def image_size(self) -> int:
        """Side length of the square input image, in pixels."""
        return self.visual.image_size

    @property
    def image_mean(self) -> tuple[float, ...]:
        """Channel means of the image normalisation."""
        return tuple(self.preprocess_cfg["mean"])

    @property
    def image_std(self) -> tuple[float, ...]:
        """Channel standard deviations of the image normalisation."""
        return tuple(self.preprocess_cfg["std"])

    @property
    def interpolation(self) -> str:
        """Interpolation of the evaluation transform: ``bicubic``, ``bilinear`` …"""
        return cast(str, self.preprocess_cfg["interpolation"])

    @property
    def resize_mode(self) -> str:
        """How the evaluation transform makes images square: ``shortest`` (then crops), ``longest`` or ``squash``."""
        return cast(str, self.preprocess_cfg["resize_mode"])

    @property
    def context_length(self) -> int:
        """Maximum number of tokens of the text tower, L."""
        return self.text.context_length

    @functools.cached_property
    def embed_dim(self) -> int:
        """Width D of the joint embedding."""
        return self.encode_text(["a"]).shape[-1]

    def require(self, *, text: int = 0, vision: int = 0) -> None:
        """Raise a ``VlpromptError`` unless the towers accept text and visual prompts in that many layers."""
        for asked, able, layers, what, instead in (
            (text, self.text.promptable, self.text.layers, "text", "use one with an OpenCLIP text tower"),
            (
                vision,
                self.visual.promptable,
                self.visual.layers,
                "visual",
                "use a ViT of OpenCLIP or a text-only method such as coop",
            ),
        ):
            if asked and not able:
                kind = self.visual.kind if what == "visual" else "Hugging Face"
                raise VlpromptError(f"{self.name}: its {kind} tower takes no {what} prompts; {instead}")
            if asked > layers:
                raise VlpromptError(
                    f"{self.name}: {what} prompts were asked for in {asked} layers, but its {what} tower has {layers}; "
                    f"set the depth to {layers} or less"
                )

    def activation(self) -> str:
        """Name of the activation function in the towers' MLPs, such as ``QuickGELU``."""
        block = next((b for b in (self.text.blocks or self.visual.blocks or [])), None)
        return "unknown" if block is None else type(block.module.mlp.gelu).__name__

    def weights_hash(self) -> str:
        """SHA-256 of the current values of all parameters and buffers."""
        digest = hashlib.sha256()
        for key, tensor in sorted(self.model.state_dict().items()):
            digest.update(key.replace("_orig_mod.", "").encode())  # which torch.compile of a tower puts in
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()

    def identity(self) -> dict[str, Any]:
        """What identifies a backbone: architecture, weights (hashed in fp32), activation, preprocessing."""
        return {
            "architecture": self.name,
            "pretrained": self.pretrained,
            "activation": self.activation(),
            "image_size": self.image_size,
            "preprocessing": {key: _plain(self.preprocess_cfg[key]) for key in PREPROCESSING},
            "weights": self._weights_hash,
        }

    def _cast(self, dtype: torch.dtype) -> None:
        """Hold the towers' large matrices in ``dtype``; towers of unknown make stay fp32 and run under autocast."""
        self.dtype = dtype
        for tower in (self.text, self.visual):
            for parameter in tower.matrices():
                parameter.data = parameter.data.to(dtype)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32)

    # Text

    def _probe_tokenizer(self) -> tuple[int, int]:
        """How many start tokens every text has, and the padding id."""
        try:
            ids = self.tokenizer(["a", "dog", ""], context_length=self.context_length)
            highest = int(ids.max()) if ids.dim() == 2 else 0
        except Exception as error:  # it is anyone's code
            reason = " ".join(str(error).split())[:200]
            raise VlpromptError(
                f"the tokenizer does not give ids (N, L) for tokenizer(texts, context_length=L): {reason}"
            ) from error
        if self.text.promptable and highest >= (known := len(self.text.module.token_embedding.weight)):
            raise VlpromptError(
                f"the tokenizer gives ids up to {highest}, and the model knows {known}: give the tokenizer of the model"
            )
        same = (ids[0] == ids[1]).tolist()
        return (same.index(False) if False in same else 0), statistics.mode(ids[2].tolist())

    def _lengths(self, ids: Tensor) -> Tensor:
        """Tokens of each row that are not padding, start and end included: (C, L) -> (C,)."""
        if self.text.promptable and self.text.pool_type in ("argmax", "eos"):
            return self.text.end_of_text(ids) + 1
        return (ids != self._padding_id).sum(dim=-1)

    def room_beside(self, inserted: int) -> int:
        """Number of tokens left for words next to learnt vectors; raises ``VlpromptError`` if there are too few."""
        room = self.context_length - inserted
        if room < SHORTEST_TEXT:
            raise VlpromptError(
                f"{inserted} learnt vectors leave no room for class names: the text tower of {self.name} reads "
                f"{self.context_length} tokens"
            )
        return room

    def tokenize(self, texts: Sequence[str], inserted: int = 0, cut: bool = False) -> Tensor:
        """Tokenize to (N, L - inserted) ids; raises ``VlpromptError`` naming a text that is too long.

        Args:
            texts: the texts.
            inserted: number of positions to leave free for learnt vectors.
            cut: truncate texts that are too long instead, keeping the end-of-text token.
        """
        room = self.room_beside(inserted)
        ids = self.tokenizer(list(texts), context_length=room)
        lengths = self._lengths(self.tokenizer(list(texts), context_length=4 * self.context_length))
        too_long = (lengths > room).nonzero().flatten().tolist()
        if too_long and not cut:
            text, length = texts[too_long[0]], int(lengths[too_long[0]]) + inserted
            more = f" (and {len(too_long) - 1} more)" if len(too_long) > 1 else ""
            raise VlpromptError(
                f"'{text:.80}' takes {length} tokens with its context, but the text tower of {self.name} "
                f"reads {self.context_length}: shorten the class name or the context{more}"
            )
        return ids.to(self.device)

    def class_tokens(
        self, class_names: Sequence[str], words: str = "", inserted: int = 0, stop: str = "."
    ) -> ClassTokens:
        """Tokenize "words name." for each class, leaving room for ``inserted`` learnt vectors after start-of-text.

        Classes with several names (``ClassNames``) get one row per name. The most recent lists are cached for all
        learners of the model, since a sweep, or a test on both halves of the classes, asks for the same few.
        """
        names, owners = names_and_owners(class_names)
        best = isinstance(class_names, ClassNames) and class_names.best
        asked, kept = (tuple(names), owners, best, words, inserted, stop), _TOKENIZED.setdefault(self, {})
        found = kept.pop(asked, None) or self._class_tokens(class_names, words, inserted, stop)
        kept[asked] = found  # the latest stands last
        if len(kept) > LISTS_KEPT:
            kept.pop(next(iter(kept)))
        return found

    def _class_tokens(self, class_names: Sequence[str], words: str, inserted: int, stop: str) -> ClassTokens:
        names = [natural_name(name) for name in all_names(class_names)]
        ids = self.tokenize([f"{words} {name}{stop}".strip() for name in names], inserted)
        lengths = self._lengths(ids) - self._start
        ids = ids[:, self._start :]
        if self.text.shares_prefix:
            ids = ids[:, : int(lengths.max())]  # nothing after end-of-text is ever read
        n_words = int(self.count_tokens([words])) if words else 0
        beginnings, named = same_beginnings(ids), self._names_of(class_names)
        return ClassTokens(ids, lengths, self.count_tokens(names), n_words, beginnings, **named)

    def _names_of(self, class_names: Sequence[str]) -> dict[str, Any]:
        """What prompts must know of classes that go by several names; nothing of others."""
        _, owners = names_and_owners(class_names)
        if owners is None:
            return {}
        best = isinstance(class_names, ClassNames) and class_names.best
        return {"owners": torch.tensor(owners, device=self.device), "averaged": not best}

    def prompts_of_classes(self, class_names: Sequence[str], template: str) -> Prompts:
        """Prompts, for ``encode_prompts``, of each class's names in a template with one ``{}``."""
        texts = [template.replace("{}", natural_name(name)) for name in all_names(class_names)]
        return replace(self.prompts_of(texts), **self._names_of(class_names))

    def count_tokens(self, texts: Sequence[str]) -> Tensor:
        """Number of tokens (N,) of each text, without the start and end tokens."""
        ids = self.tokenizer([*texts, ""], context_length=4 * self.context_length)
        lengths = self._lengths(ids)
        return (lengths[:-1] - lengths[-1]).to(self.device)

    def word_embeddings(self, words: str) -> Tensor:
        """Token embeddings (n, d_t) of a phrase, without the start and end tokens."""
        count = int(self.count_tokens([words])[0])
        return self.text.embed(self.tokenize([words])[0, self._start : self._start + count])

    def start_embedding(self) -> Tensor:
        """Embedding (1, d_t) of start-of-text; (0, d_t) for tokenizers without one."""
        return self.text.embed(self._start_ids)

    def encode_prompts(self, prompts: Prompts, chunk: Chunk = None, edits: Sequence[Edit] = ()) -> Tensor:
        """Encode prompts given as embeddings (see ``vlprompt.clip.text``): features (G, C, D), fp32, not normalised."""
        return encode_prompts(self.text, prompts, chunk, edits)

    @torch.no_grad()
    def encode_text(
        self, texts: Sequence[str], chunk: int = 256, edits: Sequence[Edit] = (), cut: bool = False
    ) -> Tensor:
        """Encode texts with the frozen tower: features (N, D), fp32, not normalised, without gradients.

        Args:
            texts: the texts.
            chunk: number of texts to encode at a time.
            edits: edits to apply in the text tower.
            cut: as in ``tokenize``.
        """
        texts = listed(texts, "texts")
        if not texts or not all(isinstance(text, str) for text in texts):
            raise VlpromptError(f"texts must be at least one text, not {brief(next(iter(texts), texts))}")
        if not self.text.promptable:
            edits_of("text", edits, promptable=False)
            # a method, which torch's types take for a tensor or a module
            encode = cast(Callable[[Tensor], Tensor], self.model.encode_text)
            with self._autocast():
                return torch.cat([encode(part).float() for part in self.tokenize(texts, cut=cut).split(chunk)])
        return self.encode_prompts(self.prompts_of(texts, cut), chunk, edits)[0]

    def prompts_of(self, texts: Sequence[str], cut: bool = False) -> Prompts:
        """Whole texts as prompts for ``encode_prompts``, for when edits need gradients; ``cut`` as in ``tokenize``."""
        ids = self.tokenize(texts, cut=cut)
        lengths = self._lengths(ids) - self._start
        start, ids = self.start_embedding(), ids[:, self._start :]
        if self.text.shares_prefix:
            ids = ids[:, : int(lengths.max())]  # nothing after end-of-text is ever read
            alike = (ids == ids[:1]).all(dim=0).int().cumprod(dim=0).sum()  # tokens that all of them begin with
            same = min(int(alike), int(lengths.min()) - 1)
            start = torch.cat([start, self.text.embed(ids[0, :same])])
            ids, lengths = ids[:, same:], lengths - same
        return Prompts(start.unsqueeze(0), self.text.embed(ids), lengths, same_beginnings(ids))

    # Images

    def prompted_image_features(
        self, images: Tensor, prompts: dict[int, Tensor], place: Place = "pre_ln", edits: Sequence[Edit] = ()
    ) -> Tensor:
        """Encode images (B, 3, H, W) with visual prompts {layer: (n, d_v)}: (B, D), fp32, not normalised."""
        images = check_images(images, self.image_size).to(self.device)
        return encode_images(self.visual, images, prompts, place, edits)

    @torch.no_grad()
    def encode_image(self, images: Tensor) -> Tensor:
        """Encode images (B, 3, H, W) with the frozen tower: features (B, D), fp32, not normalised."""
        images = check_images(images, self.image_size).to(self.device)
        if self.visual.promptable:
            return encode_images(self.visual, images)
        with self._autocast():
            return self.visual.encode(images)

    def similarity(self, image_features: Tensor, text_features: Tensor) -> Tensor:
        """Logits exp(logit_scale)·v·tᵀ (+ bias) of normalised features: (B, D) with (C, D) or (B, C, D) -> (B, C)."""
        if text_features.dim() == 3:
            cosine = torch.einsum("bd,bcd->bc", image_features, text_features)
        else:
            cosine = image_features @ text_features.T
        return self.logit_scale * cosine + self.logit_bias

    # Copies: a frozen model is shared (and pickled as a name, see ``loading``)

    def __sklearn_clone__(self) -> FrozenCLIP:
        return self

    def __repr__(self) -> str:
        return f"FrozenCLIP({self.name}, pretrained={self.pretrained}, {self.precision}, {self.device})"


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
