"""Parameterisations of a context, for every design with learnt words: the setting ``context``.

``full`` trains the vectors themselves, ``lowrank`` also a low-rank update of the words behind them, ``factored`` two
factors of the vectors, ``multispace`` also gated sub-spaces, ``reparam`` also an encoder over them. All start with the
same prompts as ``full``; ``factored`` as far as its rank allows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vlprompt.base.parts import Part, parse_part
from vlprompt.base.registry import Registry
from vlprompt.clip.frozen import FrozenCLIP
from vlprompt.errors import VlpromptError
from vlprompt.learner.facts import Facts
from vlprompt.learner.method import Method
from vlprompt.learner.prompts import TextPrompt

BOTTLENECK = 64  # of PRE's MLP encoder


class LowRankUpdate(nn.Module):
    """Decomposed prompt tuning's update of word embeddings by position, α/√r·A·B (DePT, arXiv:2309.05173).

    B starts at zero, so that the update has no effect before training.

    Args:
        length: number of positions L.
        width: width d of an embedding.
        rank: r.
        alpha: α.
        lr_scale: factor of the recipe's learning rate; separate rates for the two parts are the point of the method.

    Attributes:
        a, b: (L, r) and (r, d).
    """

    def __init__(self, length: int, width: int, rank: int, alpha: float = 8.0, lr_scale: float = 1.0):
        super().__init__()
        if not 1 <= rank <= min(length, width):
            raise VlpromptError(f"lowrank needs a rank from 1 to {min(length, width)}, not {rank}")
        bound = rank**-0.5  # as kaiming_uniform_(a=√5) draws an (L, r)
        self.a = nn.Parameter(torch.empty(length, rank).uniform_(-bound, bound))
        self.b = nn.Parameter(torch.zeros(rank, width))
        self.scale, self.lr_scale = alpha / math.sqrt(rank), lr_scale

    def forward(self, count: int) -> Tensor:
        """The update of the first ``count`` positions (count, d)."""
        update: Tensor = self.scale * (self.a[:count] @ self.b)
        return update


class Tokens(nn.Module):
    """The tokens of all layers as a function of what is trained.

    Args:
        tokens: initial tokens as for ``full``: the context (…, n, d), then those of deeper blocks (n, d).
    """

    def __init__(self, tokens: Sequence[Tensor]):
        super().__init__()
        self.raw = nn.ParameterList(nn.Parameter(each.detach().clone()) for each in tokens)

    def forward(self) -> list[Tensor]:
        """The tokens that enter the tower, in the shapes that they were given in."""
        return [self.made(each) for each in self.raw]

    def made(self, raw: Tensor) -> Tensor:
        """One layer's tokens (…, n, d)."""
        raise NotImplementedError


class Factored(nn.Module):
    """The tokens of all layers, stacked, as a product A·B of rank r: fewer parameters if there are many tokens.

    Initialized with the best rank-r approximation of what ``full`` starts with (Eckart and Young).

    Attributes:
        a, b: (M, r) for M tokens in all, and (r, d).
    """

    def __init__(self, tokens: Sequence[Tensor], rank: int):
        super().__init__()
        self.shapes = [each.shape[:-1] for each in tokens]
        rows = torch.cat([each.detach().cpu().flatten(0, -2) for each in tokens])  # (M, d); words are on the device
        if not 1 <= rank <= min(rows.shape):
            most = min(rows.shape)
            raise VlpromptError(
                f"context=factored(rank={rank}) has {len(rows)} tokens in all: take a rank from 1 to {most}"
            )
        u, s, vh = torch.linalg.svd(rows, full_matrices=False)
        root = s[:rank].sqrt()
        self.a, self.b = nn.Parameter(u[:, :rank] * root), nn.Parameter(root[:, None] * vh[:rank])

    def forward(self) -> list[Tensor]:
        """The tokens that enter the tower."""
        parts = (self.a @ self.b).split([math.prod(shape) for shape in self.shapes])
        return [part.unflatten(0, shape) for part, shape in zip(parts, self.shapes, strict=True)]


class MultiSpace(Tokens):
    """Each token plus its images under J sub-space maps, weighted by a gate: p + Σ_j g_j(p)·p·D_j·U_j (after EPT).

    A reconstruction: EPT (arXiv:2405.11464) is for language models, and has no public code. U starts at zero, the gate
    uniform.

    Attributes:
        down, up: D (J, d, r) and U (J, r, d).
        gate: (d, J), with g = softmax(p·gate).
    """

    def __init__(self, tokens: Sequence[Tensor], spaces: int, rank: int):
        super().__init__(tokens)
        width = tokens[0].shape[-1]
        if spaces < 1 or not 1 <= rank <= width:
            raise VlpromptError(f"context=multispace needs 1 space or more, of a rank from 1 to {width}")
        self.down = nn.Parameter(torch.empty(spaces, width, rank).uniform_(-(width**-0.5), width**-0.5))
        self.up = nn.Parameter(torch.zeros(spaces, rank, width))
        self.gate = nn.Parameter(torch.zeros(width, spaces))

    def made(self, raw: Tensor) -> Tensor:
        """One layer's tokens (…, n, d)."""
        shares = (raw @ self.gate).softmax(dim=-1)  # (…, n, J)
        inside = torch.einsum("...d,jdr->...jr", raw, self.down)
        return raw + torch.einsum("...j,...jr,jrd->...d", shares, inside, self.up)


class LSTMEncoder(nn.Module):
    """A bidirectional LSTM over the context's tokens, half the width each way."""

    def __init__(self, clip: FrozenCLIP):
        super().__init__()
        width = clip.text.width
        self.lstm_head = nn.LSTM(width, width // 2, bidirectional=True, batch_first=True)

    def forward(self, ctx: Tensor) -> Tensor:
        """Encode (n, d_t), or (C, n, d_t) set by set."""
        out: Tensor = self.lstm_head(ctx if ctx.dim() == 3 else ctx.unsqueeze(0))[0]
        return out if ctx.dim() == 3 else out[0]


class MLPEncoder(nn.Module):
    """A bottleneck MLP on each token."""

    def __init__(self, clip: FrozenCLIP):
        super().__init__()
        width = clip.text.width
        self.mlp = nn.Sequential(
            nn.Linear(width, BOTTLENECK), nn.ReLU(), nn.Linear(BOTTLENECK, width), nn.LayerNorm(width)
        )

    def forward(self, ctx: Tensor) -> Tensor:
        """Encode (…, n, d_t)."""
        out: Tensor = self.mlp(ctx)
        return out


class PerToken(nn.Module):
    """A separate encoder for each token."""

    def __init__(self, encoders: list[nn.Module]):
        super().__init__()
        self.encoders = nn.ModuleList(encoders)

    def forward(self, ctx: Tensor) -> Tensor:
        """Encode (…, n, d_t) token by token."""
        tokens = ctx.split(1, dim=-2)
        return torch.cat([encode(token) for encode, token in zip(self.encoders, tokens, strict=True)], dim=-2)


EncoderKind = Literal["lstm", "mlp"]
ENCODERS: dict[EncoderKind, Callable[[FrozenCLIP], nn.Module]] = {"lstm": LSTMEncoder, "mlp": MLPEncoder}


def make_encoder(clip: FrozenCLIP, kind: EncoderKind, n: int, shared: bool) -> nn.Module:
    """PRE's encoder over n tokens: one for all of them, or one each."""
    return ENCODERS[kind](clip) if shared else PerToken([ENCODERS[kind](clip) for _ in range(n)])


class Encoded(Tokens):
    """Tokens after an encoder with a residual connection, p + E(p), one for all layers (PRE has a single layer)."""

    def __init__(self, tokens: Sequence[Tensor], encoder: nn.Module):
        super().__init__(tokens)
        self.encoder = encoder

    def made(self, raw: Tensor) -> Tensor:
        """One layer's tokens (…, n, d)."""
        encoded: Tensor = raw + self.encoder(raw)
        return encoded


class ContextSetting(Part):
    """Base class of parameterisations."""

    def apply(self, prompt: TextPrompt, clip: FrozenCLIP) -> None:
        """Change the parameters of a prompt."""


CONTEXTS: Registry[type[ContextSetting]] = Registry("context")


@CONTEXTS.register("full")
class Full(ContextSetting):
    """The vectors themselves."""


@CONTEXTS.register("lowrank", paper="DePT (decomposed), arXiv:2309.05173", fidelity="code")
class LowRank(ContextSetting):
    """The vectors, and an update of the words behind them by position; see ``LowRankUpdate``."""

    def __init__(self, rank: int = 4, alpha: float = 8.0, lr_scale: float = 1.0):
        self.rank, self.alpha, self.lr_scale = rank, alpha, lr_scale

    def apply(self, prompt: TextPrompt, clip: FrozenCLIP) -> None:
        """Add an update for all positions after start-of-text and the context."""
        length = clip.room_for_words(prompt.n_inserted) - len(clip.start_embedding())
        prompt.update = LowRankUpdate(length, clip.text.width, self.rank, self.alpha, self.lr_scale)


@CONTEXTS.register("factored", paper="", fidelity="invariants")
class FactoredSetting(ContextSetting):
    """Two factors of the vectors of all prompted blocks; see ``Factored``."""

    def __init__(self, rank: int = 4):
        self.rank = rank

    def apply(self, prompt: TextPrompt, clip: FrozenCLIP) -> None:
        """Replace the vectors by the product."""
        prompt.compute_from(Factored([prompt.ctx, *prompt.deep], self.rank))


@CONTEXTS.register("multispace", paper="EPT, arXiv:2405.11464", fidelity="reconstruction")
class MultiSpaceSetting(ContextSetting):
    """The vectors, plus gated sub-space maps of them; see ``MultiSpace``."""

    def __init__(self, spaces: int = 2, rank: int = 4):
        self.spaces, self.rank = spaces, rank

    def apply(self, prompt: TextPrompt, clip: FrozenCLIP) -> None:
        """Replace the vectors by the sum."""
        prompt.compute_from(MultiSpace([prompt.ctx, *prompt.deep], self.spaces, self.rank))


@CONTEXTS.register("reparam", paper="PRE, arXiv:2309.07760", fidelity="code")
class Reparameterised(ContextSetting):
    """The vectors behind PRE's encoder; see ``Encoded``."""

    def __init__(self, encoder: EncoderKind = "lstm", shared: bool = True):
        if encoder not in ENCODERS:
            raise VlpromptError(f"context=reparam has an encoder lstm or mlp, not '{encoder}'")
        self.encoder, self.shared = encoder, shared

    def apply(self, prompt: TextPrompt, clip: FrozenCLIP) -> None:
        """Replace the vectors by the encoded ones."""
        encoder = make_encoder(clip, self.encoder, prompt.n_ctx, self.shared)
        prompt.compute_from(Encoded([prompt.ctx, *prompt.deep], encoder))


def parse_context(setting: str) -> ContextSetting:
    """The parameterisation that a setting names."""
    return parse_part(setting, CONTEXTS)


def facts_with_context(config: Any, facts: Facts) -> Facts:
    """The facts of a learner with its parameterisation: a reconstruction, if that is one."""
    held = CONTEXTS.info(parse_context(config.context).name).facts.get("fidelity")
    return replace(facts, fidelity="reconstruction") if held == "reconstruction" else facts


def parameterise(learner: Method, setting: str) -> None:
    """Change what is trained of each context of a learner that was just set up.

    Raises:
        VlpromptError: the parameterisation is not known, or the learner has no context or trains it in its own way.
    """
    chosen = parse_context(setting)
    if isinstance(chosen, Full):
        return
    prompts = [part for part in learner.modules() if isinstance(part, TextPrompt) and part.trains_vectors]
    reason = ""
    if not prompts:
        reason = "learns no words of a text prompt: take it with coop, ivlp or maple"
    elif type(learner).parameter_groups is not Method.parameter_groups or "views" in learner.facts.inputs:
        reason = "says itself what of its context is trained, and how"
    if reason:
        raise VlpromptError(f"context={setting} is not possible: {learner.method} with these settings {reason}")
    for prompt in prompts:
        chosen.apply(prompt, learner.clip)
