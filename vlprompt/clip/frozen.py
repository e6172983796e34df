"""``FrozenCLIP``: an OpenCLIP model with fixed weights, its tokenizer, image transform and identity."""

from __future__ import annotations

import copy
import functools
import hashlib
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from open_clip.transform import PreprocessCfg, image_transform_v2, merge_preprocess_dict
from torch import Tensor, nn

from vlprompt.base.checks import brief, listed
from vlprompt.base.devices import DTYPES, Precision, check_precision, resolve_device
from vlprompt.base.tensor_checks import check_images
from vlprompt.base.wiring import lazy_exports
from vlprompt.clip.backbone_tags import PREPROCESSING
from vlprompt.clip.chunks import Chunk
from vlprompt.clip.edits import Edit, edits_of
from vlprompt.clip.prompt_inputs import PromptInputs, Tokenizer
from vlprompt.clip.text import Prompts, encode_prompts
from vlprompt.clip.towers import TextTower, VisionTower, plain_model
from vlprompt.clip.vision import Place, encode_images
from vlprompt.errors import VlpromptError

__getattr__, __dir__ = lazy_exports(__name__, formerly="vlprompt.clip.prompt_inputs")  # whose names were here


class FrozenCLIP(PromptInputs):
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

    Attributes:
        text, visual: views of the towers, see ``vlprompt.clip.towers``.
        model: the OpenCLIP model itself.
        logit_scale, logit_bias: factor and summand of cosine similarities in the logits, as numbers.
        preprocess: transform of a PIL image to a tensor (3, S, S), for evaluation.

    Raises:
        VlpromptError: the model is not OpenCLIP's, the tokenizer does not fit it, or the device does not support the
            precision.
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
            model = copy.deepcopy(model)  # so that the caller's weights are not rounded
        self.text, self.visual = TextTower(model), VisionTower(model)
        self.model = model.float().eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.name, self.pretrained, self.precision = name, pretrained, precision
        self._weights_hash = self.weights_hash()
        self._cast(DTYPES[precision])
        self.model.to(self.device)
        self._start, self._padding_id = self._probe_tokenizer()
        self._start_ids = self.tokenizer(["a"])[0, : self._start].to(
            self.device
        )  # once, so that traced graphs have it as a constant
        self.text.shares_prefix &= self._start > 0

        self.preprocess_cfg = merge_preprocess_dict(PreprocessCfg(), getattr(model.visual, "preprocess_cfg", {}))
        self.preprocess_cfg["size"] = self.image_size
        self.preprocess = preprocess or image_transform_v2(PreprocessCfg(**self.preprocess_cfg), is_train=False)
        bias = getattr(model, "logit_bias", None)
        self.logit_scale = float(cast(Tensor, model.logit_scale).detach().exp())
        self.logit_bias = 0.0 if bias is None else float(bias.detach())

    # Properties of the model

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
        """Interpolation of the evaluation transform, such as ``bicubic`` or ``bilinear``."""
        return cast(str, self.preprocess_cfg["interpolation"])

    @property
    def resize_mode(self) -> str:
        """How the evaluation transform makes images square: ``shortest`` (then crops), ``longest`` or ``squash``."""
        return cast(str, self.preprocess_cfg["resize_mode"])

    @functools.cached_property
    def embed_dim(self) -> int:
        """Width D of the joint embedding."""
        return self.encode_text(["a"]).shape[-1]

    def require(self, *, text: int = 0, vision: int = 0) -> None:
        """Raise a ``VlpromptError`` unless the towers accept text and visual prompts in that many layers."""
        if text and not self.text.promptable:
            raise VlpromptError(
                f"{self.name}: its Hugging Face tower takes no text prompts; use one with an OpenCLIP text tower"
            )
        if vision and not self.visual.promptable:
            raise VlpromptError(
                f"{self.name}: its {self.visual.kind} tower takes no visual prompts; use a ViT of OpenCLIP or a "
                "text-only method such as coop"
            )
        for what, asked, layers in (("text", text, self.text.layers), ("visual", vision, self.visual.layers)):
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
            digest.update(key.replace("_orig_mod.", "").encode())  # a prefix that torch.compile adds to a tower's names
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()

    def identity(self) -> dict[str, Any]:
        """What identifies a backbone: architecture, activation, preprocessing, and a hash of its fp32 weights."""
        return {
            "architecture": self.name,
            "pretrained": self.pretrained,
            "activation": self.activation(),
            "image_size": self.image_size,
            "preprocessing": {key: _plain(self.preprocess_cfg[key]) for key in PREPROCESSING},
            "weights": self._weights_hash,
        }

    def _check_place(self) -> None:
        """Raise a ``VlpromptError`` if the model was moved or converted since this was made of it."""
        scale = cast(Tensor, self.model.logit_scale)
        if scale.device.type != self.device.type or scale.dtype != torch.float32:
            raise VlpromptError(
                f"the model inside {self.name} was moved to {scale.device} or converted to {_short(scale.dtype)} after "
                f"it was frozen on {self.device}: make another with device= and precision= in its place"
            )

    def _cast(self, dtype: torch.dtype) -> None:
        """Store the towers' large matrices in ``dtype``; other towers than OpenCLIP's stay fp32 and use autocast."""
        self.dtype = dtype
        for tower in (self.text, self.visual):
            for parameter in tower.matrices():
                parameter.data = parameter.data.to(dtype)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32)

    # Text

    def encode_prompts(self, prompts: Prompts, chunk: Chunk = None, edits: Sequence[Edit] = ()) -> Tensor:
        """Encode prompts given as embeddings (see ``vlprompt.clip.text``): features (G, C, D), fp32, not normalised."""
        self._check_place()
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
            # torch's types take every attribute of a module for a tensor or a module
            encode = cast(Callable[[Tensor], Tensor], self.model.encode_text)
            with self._autocast():
                return torch.cat([encode(part).float() for part in self.tokenize(texts, cut=cut).split(chunk)])
        return self.encode_prompts(self.prompts_of(texts, cut), chunk, edits)[0]

    # Images

    def prompted_image_features(
        self, images: Tensor, prompts: dict[int, Tensor], place: Place = "pre_ln", edits: Sequence[Edit] = ()
    ) -> Tensor:
        """Encode images (B, 3, H, W) with visual prompts {layer: (n, d_v)}: (B, D), fp32, not normalised."""
        self._check_place()
        images = check_images(images, self.image_size).to(self.device)
        return encode_images(self.visual, images, prompts, place, edits)

    @torch.no_grad()
    def encode_image(self, images: Tensor) -> Tensor:
        """Encode images (B, 3, H, W) with the frozen tower: features (B, D), fp32, not normalised."""
        self._check_place()
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

    # Copying and pickling: a frozen model is shared, and pickled as its name where it has one (``loading``)

    def __sklearn_clone__(self) -> FrozenCLIP:
        return self

    def __repr__(self) -> str:
        return f"FrozenCLIP({self.name}, pretrained={self.pretrained}, {self.precision}, {self.device})"


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
