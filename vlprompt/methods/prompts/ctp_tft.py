"""CTP-TFT: task-oriented multi-modal mutual learning (Long et al., 2023, arXiv:2303.17169), reconstructed.

Neither code nor the body of the paper was available: this follows the abstract, and everything else was decided here.
It makes no claim to the authors' numbers.
From the abstract: a class-aware text prompt (CTP) uses what the image shows of each class, rather than one vector for
all classes as in CoCoOp; text-guided feature tuning (TFT) makes the image feature attend to what the classes refer to;
a contrastive loss aligns the two.
Decided here: with q_c the frozen class features, V the image's patch tokens in the joint space and s the logit scale,
v_c = softmax_p(s·q_c·K V_p) V, and the context for an image and class is ctx + h(v_c); the image feature is
f' = f + Σ_c softmax_c(s·f·q_c)·A(q_c); the loss is CLIP's cross-entropy between f' and the classes' prompts. h and A
are small MLPs whose last layer starts at zero, and K starts as the identity, so that training starts from CLIP with the
words of the context. A is trained at 1/s of the learning rate, since CLIP's logits multiply its steps by s.
Protocols: few-shot, base-to-new. B·C prompts per batch with no context in common: CoCoOp's cost without its shortcuts.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlprompt.clip.edits import Edit
from vlprompt.errors import VlpromptError
from vlprompt.learner import register
from vlprompt.learner.fusion import first_kind
from vlprompt.learner.objectives import Batch
from vlprompt.methods.prompts.cocoop import REDUCTION, CoCoOp


class PatchTokens(Edit):
    """Leaves the tower unchanged and records the patches' states after the last block, for one call.

    Args:
        last: index of that block.
        count: N, patches of an image.
    """

    tower = "vision"
    needs_all_tokens = True

    def __init__(self, last: int, count: int):
        self.last, self.count = last, count
        self.states = torch.empty(0)

    def finished(self, layer: int, x: Tensor, out: Tensor) -> Tensor:
        """Keep the patches' states (B, N, d_v), between CLS and appended tokens."""
        if layer == self.last:
            self.states = out[:, 1 : 1 + self.count]
        return out


class ZeroStarted(nn.Sequential):
    """An MLP width -> width/16 -> out whose output is zero before training.

    Args:
        width, out: width of the input and of the output.
        lr_scale: factor of the recipe's learning rate.
    """

    def __init__(self, width: int, out: int, lr_scale: float = 1.0):
        hidden = max(1, width // REDUCTION)
        last = nn.Linear(hidden, out)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        super().__init__(nn.Linear(width, hidden), nn.ReLU(), last)
        self.lr_scale = lr_scale


@register(
    "ctp_tft",
    paper="arXiv:2303.17169",
    like=CoCoOp,
    trains=("text", "head"),
    cacheable_images=False,
    fidelity="reconstruction",
)
class CTPTFT(CoCoOp):
    """Contexts for each image and class, from the patches that show the class, and text-guided image features."""

    def make_maps(self) -> None:
        """Create K (D, D), h: D -> D/16 -> d_t and A: D -> D/16 -> D."""
        self.clip.require(vision=1)
        if not self.clip.visual.cls_only:
            raise VlpromptError(f"ctp_tft needs an image tower that reads its CLS token, and {self.clip.name} does not")
        joint = self.clip.embed_dim
        self.key = nn.Linear(joint, joint, bias=False)
        nn.init.eye_(self.key.weight)
        self.context_of = ZeroStarted(joint, self.clip.text.width)
        self.guided_by = ZeroStarted(joint, joint, 1 / self.clip.logit_scale)  # its steps are taken that many fold

    def encode_images(self, batch: Batch) -> Tensor:
        """Features (B, 1+N, D): the text-guided one of the image, and those of its patches."""
        tower = self.clip.visual
        patches = PatchTokens(tower.layers - 1, len(tower.positions) - 1)
        f = self.clip.prompted_image_features(batch["image"], {}, edits=[*self.edits, patches])
        states = tower.final_norm(patches.states)
        seen = states if tower.projection is None else states @ tower.projection  # (B, N, D)
        return torch.cat([self.guided(F.normalize(f, dim=-1)).unsqueeze(1), seen], dim=1)

    def guided(self, f: Tensor) -> Tensor:
        """f' (B, D) of normalised image features f (B, D): TFT."""
        q = self.frozen_text()  # (C, D)
        led: Tensor = f + (self.clip.logit_scale * f @ q.T).softmax(dim=-1) @ self.guided_by(q)
        return led

    def contexts(self, patches: Tensor) -> Tensor:
        """Contexts (B, C, n, d_t) by normalised features of the patches (B, N, D): CTP."""
        near = self.clip.logit_scale * self.frozen_text() @ self.key(patches).mT  # (B, C, N)
        v = near.softmax(dim=-1) @ patches  # (B, C, D)
        made: Tensor = self.prompt.ctx + self.context_of(v).unsqueeze(2)
        return made

    def encode_text(self, v: Tensor | None = None) -> Tensor:
        """Class features (B, C, D) for the normalised features of each image and its patches, v (B, 1+N, D)."""
        if v is None or v.dim() != 3:
            raise VlpromptError("ctp_tft's class features depend on each image's patches, so there are none without")
        ctx = self.contexts(v[:, 1:])
        return self.prompt.encode(self.clip, self.tokens, ctx, self.config.text_chunk, edits=self.edits)

    def score(self, v: Tensor, t: Tensor) -> Tensor:
        """Logits (B, C) of the image's own feature."""
        return super().score(first_kind(v), t)
