"""TCP, MMA, MMRL and MMRL++ against OpenCLIP's own blocks, run one after another, on towers of unequal depth.

The golden fixtures hold them to their authors' code at one size; here are other blocks, shares and numbers of tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlprompt import PromptLearner
from vlprompt.testing import NAMES, close, make, small_clip, toy_batch

CLIP = small_clip(layers=5)  # of text, beside three blocks of images
MODEL, IMAGES = CLIP.model, toy_batch(4)["image"]
SPOKEN = [name.replace("_", " ") for name in NAMES]
Tokens = Callable[[int, Tensor], Tensor]  # from a block's index and input to what enters it
Branch = Callable[[str, int, Tensor], Tensor | float]  # from tower, index and normed input to what the output gains


def same(i: int, x: Tensor) -> Tensor:
    return x


def nothing(tower: str, i: int, x: Tensor) -> float:
    return 0.0


def text(prompts: Sequence[str], ctx: Tensor | None = None, tokens: Tokens = same, branch: Branch = nothing) -> Tensor:
    """Features (C, D) of whole prompts, with a context in the place of their first words."""
    ids = CLIP.tokenizer(prompts)
    x, end = MODEL.token_embedding(ids), ids.argmax(dim=1)
    if ctx is not None:
        x = torch.cat([x[:, :1], ctx.expand(len(x), -1, -1), x[:, 1 + len(ctx) :]], dim=1)
    x = x + MODEL.positional_embedding
    for i, block in enumerate(MODEL.transformer.resblocks):
        entering = tokens(i, x)
        end, x = end + entering.shape[1] - x.shape[1], entering
        causal = torch.full((x.shape[1],) * 2, float("-inf")).triu(1)
        x = block(x, attn_mask=causal) + branch("text", i, block.ln_1(x))
    return MODEL.ln_final(x)[range(len(x)), end] @ MODEL.text_projection


def image(tokens: Tokens = same, branch: Branch = nothing) -> Tensor:
    """Normed states (B, T, d_v) behind the image tower's last block, CLS first."""
    tower = MODEL.visual
    patches = tower.conv1(IMAGES).flatten(2).mT
    x = torch.cat([tower.class_embedding.expand(len(patches), 1, -1), patches], dim=1) + tower.positional_embedding
    x = tower.ln_pre(x)
    for i, block in enumerate(tower.transformer.resblocks):
        x = tokens(i, x)
        x = block(x) + branch("visual", i, block.ln_1(x))
    return tower.ln_post(x)


def cosines(v: Tensor, t: Tensor) -> Tensor:
    return F.normalize(v, dim=-1) @ F.normalize(t, dim=-1).T


def tcp(learner: PromptLearner) -> dict[str, Tensor]:
    n, config = learner.config.n_ctx, learner.config
    w = F.normalize(text([config.teacher_template.format(name) for name in SPOKEN]), dim=-1)
    own, share = learner.meta_net(w).view(len(w), n, -1), config.class_weight

    def tokens(i: int, x: Tensor) -> Tensor:
        mixed = share * own + (1 - share) * x[:, 1 : 1 + n]
        return torch.cat([x[:, :1], mixed, x[:, 1 + n :]], dim=1) if i == config.class_layer else x

    prompts = ["X " * n + config.prompt_template.format(name) for name in SPOKEN]
    v = image()[:, 0] @ MODEL.visual.proj
    return {"similarity": CLIP.logit_scale * cosines(v, text(prompts, learner.prompt.ctx, tokens))}


def mma(learner: PromptLearner) -> dict[str, Tensor]:
    def branch(tower: str, i: int, x: Tensor) -> Tensor | float:
        own: nn.ModuleDict = getattr(learner, f"{tower}_adapter")
        key = str(i + 1)
        if key not in own:
            return 0.0
        down, up, middle = own[key].down[0], own[key].up, learner.shared_adapter[key][0]
        return learner.config.adapter_scale * up(middle(down(x).relu()).relu())

    t = text([learner.config.template.format(name) for name in SPOKEN], branch=branch)
    return {"similarity": CLIP.logit_scale * cosines(image(branch=branch)[:, 0] @ MODEL.visual.proj, t)}


def mmrl(learner: PromptLearner) -> dict[str, Tensor]:
    config, n = learner.config, learner.config.n_rep_tokens
    beta, listed = getattr(config, "beta", 1.0), range(config.rep_start - 1, config.rep_end)

    def entering(maps: nn.Module) -> Tokens:
        def token(place: int) -> Tensor:
            if isinstance(maps, nn.ModuleList):
                return learner.tokens @ maps[place].weight.T + maps[place].bias
            each = maps.residuals[place]
            return learner.tokens @ (maps.weight + each.A @ each.B).T + each.bias

        def tokens(i: int, x: Tensor) -> Tensor:
            if i not in listed:
                return x
            new = token(i - listed[0]).expand(len(x), -1, -1)
            if i == listed[0]:
                return torch.cat([x[:, :1], new, x[:, 1:]], dim=1)
            return torch.cat([x[:, :1], beta * new + (1 - beta) * x[:, 1 : 1 + n], x[:, 1 + n :]], dim=1)

        return tokens

    t = text([config.template.format(name) for name in SPOKEN], tokens=entering(learner.to_text))
    x, own = image(entering(learner.to_vision)), MODEL.visual.proj
    second = learner.proj_rep if learner.method == "mmrl" else own + learner.proj_a @ learner.proj_b
    kinds = {"class": x[:, 0] @ own, "rep": x[:, 1 : 1 + n].mean(dim=1) @ second}
    return {part: config.scale * cosines(v, t) for part, v in kinds.items()}


CASES = [
    (tcp, "tcp", {"class_layer": 4, "class_weight": 0.6, "n_ctx": 3, "prompt_template": "small {}, a type of pet."}),
    (tcp, "tcp", {"class_layer": 1, "n_ctx": 5, "prompt_template": "{} texture", "meta_width": 3}),
    (mma, "mma", {"adapter_start": 2, "adapter_end": 5, "adapter_dim": 5, "adapter_scale": 0.05}),
    (mmrl, "mmrl", {"rep_start": 1, "rep_end": 2, "n_rep_tokens": 1, "rep_dim": 9, "template": "{} texture."}),
    (mmrl, "mmrl", {"rep_start": 3, "rep_end": 3, "n_rep_tokens": 4, "scale": 20.0, "template": "art of {}."}),
    (mmrl, "mmrlpp", {"rep_start": 1, "rep_end": 3, "n_rep_tokens": 2, "beta": 0.3, "template": "a photo of a {}."}),
]


@pytest.mark.parametrize(
    ("formula", "method", "settings"), CASES, ids=lambda value: value if isinstance(value, str) else ""
)
def test_parts_and_gradients_are_those_of_the_formula(formula: Callable, method: str, settings: dict) -> None:
    if method == "tcp":
        settings = settings | {"teacher_template": "a sketch of a {}."}
    learner = make(method, CLIP, **settings).eval()
    generator = torch.Generator().manual_seed(1)
    for parameter in learner.parameters():  # a low-rank residual and the like start at zero
        parameter.data += torch.randn(parameter.shape, generator=generator) / 10
    found = []
    for parts in (learner({"image": IMAGES}).parts, formula(learner)):
        learner.zero_grad()
        generator.manual_seed(2)
        sum((each * torch.randn(each.shape, generator=generator)).sum() for each in parts.values()).backward()
        found.append((parts, {name: parameter.grad for name, parameter in learner.named_parameters()}))
    (ours, our_gradients), (theirs, their_gradients) = found
    assert ours.keys() == theirs.keys()
    assert all(close(ours[part], theirs[part]) for part in theirs)
    scale = settings.get("adapter_scale", 1.0)  # MMA's own gradients are those without it
    assert all(close(scale * our_gradients[name], theirs, 1e-3) for name, theirs in their_gradients.items())
