"""A view of the residual attention blocks in OpenCLIP's own transformers."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from open_clip.transformer import Attention, CustomResidualAttentionBlock, QuickGELU, ResidualAttentionBlock
from torch import Tensor, nn

from vlprompt.clip.edits import Edit, Norm


class Block:
    """A pre-norm residual attention block in separate steps, so that callers choose queries, keys and values.

    The residual stream is fp32, and linear layers run in the dtype of their frozen weights. Attention is computed by
    the callers, in fp32, since the backward pass of bf16 attention over short sequences is slow on CPUs (see
    docs/design.md). ``edits`` are those of this tower.

    Args:
        module: OpenCLIP's block.
        layer: its index, which edits receive.
    """

    def __init__(self, module: ResidualAttentionBlock | CustomResidualAttentionBlock, layer: int):
        self.module, self.layer = module, layer
        self.attn = module.attn
        self.heads: int = module.attn.num_heads
        self.custom = isinstance(module.attn, Attention)
        self.fuse_quick_gelu = isinstance(module.mlp.gelu, QuickGELU)

    def matrices(self) -> list[nn.Parameter]:
        """The weights and biases of the linear layers."""
        mlp, attn = self.module.mlp, self.attn
        linear = [attn.in_proj_weight, attn.in_proj_bias]
        linear += [p for layer in (attn.out_proj, mlp.c_fc, mlp.c_proj) for p in (layer.weight, layer.bias)]
        return [p for p in linear if p is not None]

    def weight_of(self, part: str) -> Tensor:
        """The weight (d, d) of the map q, k, v or o, as a view that can be changed in place."""
        if part == "o":
            own: Tensor = self.attn.out_proj.weight
            return own
        weight: Tensor = self.attn.in_proj_weight
        return weight.data.chunk(3)["qkv".index(part)]

    @property
    def norms(self) -> dict[Norm, nn.LayerNorm]:
        """The norms before attention and before the MLP."""
        return {"attention": self.module.ln_1, "mlp": self.module.ln_2}

    def normed(self, x: Tensor, edits: Sequence[Edit] = (), norm: Norm = "attention") -> Tensor:
        """The input of attention or of the MLP for states x (…, d): the norm, with edits of it."""
        out: Tensor = self.norms[norm](x)
        for edit in edits:
            out = edit.normed(self.layer, norm, x, out)
        return out

    def project(self, x: Tensor, parts: str = "qkv", edits: Sequence[Edit] = ()) -> list[Tensor]:
        """Queries, keys and values of ln_1(x), or consecutive ones of them: each (…, H, d_h) in fp32 for x (…, d)."""
        weight, bias = self.attn.in_proj_weight, self.attn.in_proj_bias
        width = weight.shape[1]
        first, last = "qkv".index(parts[0]) * width, ("qkv".index(parts[-1]) + 1) * width
        x = self.normed(x, edits)
        out = F.linear(x.to(weight.dtype), weight[first:last], None if bias is None else bias[first:last]).float()
        if edits:
            named = dict(zip(parts, out.unflatten(-1, (len(parts), width)).unbind(-2), strict=True))  # each (…, d)
            for edit in edits:
                named = edit.project(self.layer, x, named)
            return [self.in_heads(part, named[part]) for part in parts]
        cut = out.unflatten(-1, (len(parts), self.heads, -1)).unbind(-3)  # in one step, which matters for small towers
        return [self._head_norm(part, t) for part, t in zip(parts, cut, strict=True)]

    def in_heads(self, part: str, x: Tensor) -> Tensor:
        """Split q, k or v (…, d) into heads (…, H, d_h), with the norms of OpenCLIP's custom attention."""
        return self._head_norm(part, x.unflatten(-1, (self.heads, -1)))

    def _head_norm(self, part: str, x: Tensor) -> Tensor:
        return getattr(self.attn, f"ln_{part}")(x) if self.custom and part != "v" else x

    def finish(self, x: Tensor, attended: Tensor, edits: Sequence[Edit] = ()) -> Tensor:
        """The block's output (…, d), given its input x (…, d) and the output of attention (…, H, d_h)."""
        module, attn, entered = self.module, self.attn, x
        if self.custom and attn.head_scale is not None:
            attended = attended * attn.head_scale.view(-1, 1)
        attended = attended.flatten(-2)  # (…, d)
        if self.custom:
            attended = attn.ln_inner(attended)
        dtype = attn.out_proj.weight.dtype
        out = attn.out_proj(attended.to(dtype))
        for edit in edits:
            out = edit.project(self.layer, attended, {"o": out.float()})["o"]
        if self.custom:
            out = module.ln_attn(out.to(dtype))
        for edit in edits:
            out = edit.attended(self.layer, entered, out.float())
        x = x + module.ls_1(out)
        hidden = self.normed(x, edits, "mlp")
        dtype, entering = module.mlp.c_fc.weight.dtype, hidden
        hidden = module.mlp.c_fc(hidden.to(dtype))
        for edit in edits:
            hidden = edit.mlp(self.layer, "fc", entering, hidden.float()).to(dtype)
        # x·σ(1.702x) = silu(1.702x)/1.702, for which autograd keeps one tensor rather than three
        hidden = F.silu(hidden * 1.702) / 1.702 if self.fuse_quick_gelu else module.mlp.gelu(hidden)
        if self.custom:
            hidden = module.mlp.ln(hidden)
        out = module.mlp.c_proj(hidden)
        for edit in edits:
            out = edit.mlp(self.layer, "proj", hidden.float(), out.float())
        x = x + module.ls_2(out)
        for edit in edits:
            x = edit.finished(self.layer, entered, x)
        return x
