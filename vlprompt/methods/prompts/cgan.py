"""A conditional GAN over prompts (SPG): a generator of contexts, and a discriminator of generated and learnt ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlprompt.errors import VlpromptError
from vlprompt.learner.learning import EpochBatches
from vlprompt.learner.objectives import Batch

SLOPE = 0.2  # of LeakyReLU
NORM_EPS = 0.8  # of the batch norms: the authors' code passes a momentum as eps, and was trained with it
DROPOUT = 0.4
LIMITS = ("d_weight", "d_bias", "d_ends", "g_weight", "g_bias", "g_last_biases")


class Norm(nn.Module):
    """Batch norm of vectors (B, width) without a counter of batches, so that its state contains only learnt numbers."""

    running_mean: Tensor
    running_var: Tensor
    eps, momentum = NORM_EPS, 0.1

    def __init__(self, width: int):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise by the batch in training, and by the running statistics otherwise."""
        statistics = (self.running_mean, self.running_var)
        scale = (self.weight, self.bias)
        normed: Tensor = F.batch_norm(x, *statistics, *scale, self.training, self.momentum, self.eps)
        return normed


class Generator(nn.Module):
    """Maps noise and an image feature to a context: six linear layers of growing width, and tanh.

    Args:
        condition: D, width of the image feature.
        noise: z, width of the noise.
        width: w of the hidden layers w/2, w, 2w, 4w.
        shape: (n, d_t) of a context.
    """

    def __init__(self, condition: int, noise: int, width: int, shape: tuple[int, int]):
        super().__init__()
        sizes = [max(1, width // 2), width, 2 * width, 4 * width]
        layers: list[nn.Module] = [nn.Linear(noise + condition, sizes[0]), nn.LeakyReLU(SLOPE)]
        for before, after in pairwise(sizes):
            layers += [nn.Linear(before, after), Norm(after), nn.LeakyReLU(SLOPE)]
        self.model = nn.Sequential(*layers, nn.Linear(sizes[-1], shape[0] * shape[1]), nn.Tanh())
        self.shape = shape
        self.model.apply(_start)

    def forward(self, noise: Tensor, v: Tensor) -> Tensor:
        """Contexts (B, n, d_t) of noise (B, z) and normalised image features v (B, D)."""
        context: Tensor = self.model(torch.cat([noise, v], dim=-1)).unflatten(-1, self.shape)
        return context


class Discriminator(nn.Module):
    """Maps a context and an image feature to how real the pair looks: four linear layers.

    Args:
        condition: D, width of the image feature.
        width: of the hidden layers.
        shape: (n, d_t) of a context.
        dropout: rate in the second and third layer.
    """

    def __init__(self, condition: int, width: int, shape: tuple[int, int], dropout: float = DROPOUT):
        super().__init__()
        layers: list[nn.Module] = [nn.Linear(shape[0] * shape[1] + condition, width), nn.LeakyReLU(SLOPE)]
        for _ in range(2):
            layers += [nn.Linear(width, width), nn.Dropout(dropout), nn.LeakyReLU(SLOPE)]
        self.model = nn.Sequential(*layers, nn.Linear(width, 1))
        self.model.apply(_start)

    def forward(self, context: Tensor, v: Tensor) -> Tensor:
        """Scores (B, 1), 1 for real, of contexts (B, n, d_t) with normalised image features v (B, D)."""
        validity: Tensor = self.model(torch.cat([context.flatten(1), v], dim=-1))
        return validity


def _start(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.kaiming_uniform_(module.weight)


class Adversaries(nn.Module):
    """Trains generator and discriminator in turns, with least-squares losses (SPG's second stage).

    Steps come in pairs. On a batch that carries another one as ``unlabeled``, the discriminator is trained on the
    learnt contexts of the batch's domains and on contexts generated for the other batch. On that other batch alone,
    which comes next, the generator is trained on the same contexts against the updated discriminator.

    Args:
        generator, discriminator: the two networks.
        labels: the learnt context of each domain (N, n, d_t).
        noise: z, width of the noise.
        encode: maps a batch to normalised image features (B, D).
        clipping: maximum gradient norms of single tensors, by ``LIMITS``; empty does not clip.
    """

    labels: Tensor

    def __init__(
        self,
        generator: Generator,
        discriminator: Discriminator,
        labels: Tensor,
        noise: int,
        encode: Callable[[Batch], Tensor],
        clipping: Mapping[str, float],
    ):
        super().__init__()
        self.generator, self.discriminator = generator, discriminator
        self.register_buffer("labels", labels)
        self.noise, self.encode = noise, encode
        self.limits = limits_of(generator, discriminator, clipping)
        self._generated: tuple[Tensor, Tensor] | None = None  # input of the discriminator's latest step

    def draw(self, count: int) -> Tensor:
        """Noise (B, z) from N(0, 1)."""
        return torch.randn(count, self.noise, device=self.labels.device)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """The loss of the network whose turn it is."""
        if "unlabeled" in batch:
            return self._discriminated(batch)
        context, v = self._generated or self._looked_at(batch)
        self._generated = None
        return _named("generator", _from(self.discriminator(context, v), 1.0))

    def _discriminated(self, batch: Batch) -> dict[str, Tensor]:
        v, other = self.encode(batch), self.encode(batch["unlabeled"])
        context = self.generator(self.draw(len(other)), other)
        self._generated = context, other
        real = self.labels[batch["domain"]] if "domain" in batch else self.labels.expand(len(v), -1, -1)
        loss = _from(self.discriminator(real, v), 1.0) + _from(self.discriminator(context.detach(), other), 0.0)
        return _named("discriminator", loss)

    def _looked_at(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Contexts for a loss outside of training steps, without updating the batch norms' statistics."""
        v, learning = self.encode(batch), self.generator.training
        self.generator.eval()
        context = self.generator(self.draw(len(v)), v)
        self.generator.train(learning)
        return context, v

    def backward(self, losses: Mapping[str, Tensor]) -> None:
        """Compute the gradients of the network whose turn it is, clipped per tensor; the others have none."""
        turn = self.generator if "generator" in losses else self.discriminator
        losses["loss"].backward(inputs=list(turn.parameters()))
        for parameter in turn.parameters():
            if parameter in self.limits:
                nn.utils.clip_grad_norm_(parameter, self.limits[parameter])


def _named(turn: str, loss: Tensor) -> dict[str, Tensor]:
    return {"loss": loss, turn: loss}


def _from(validity: Tensor, target: float) -> Tensor:
    return F.mse_loss(validity, torch.full_like(validity, target))


def limits_of(
    generator: Generator, discriminator: Discriminator, clipping: Mapping[str, float]
) -> dict[nn.Parameter, float]:
    """The maximum gradient norm of each tensor.

    Args:
        generator, discriminator: the networks.
        clipping: norms by name: ``d_ends`` for the discriminator's first and last layer, ``d_weight`` and ``d_bias``
            for those between; ``g_last_biases`` for the biases of the generator's last batch norm and last layer,
            ``g_bias`` for its other biases, ``g_weight`` for its weights. Empty clips nothing.

    Raises:
        VlpromptError: a name is missing or unknown.
    """
    if not clipping:
        return {}
    if set(clipping) != set(LIMITS):
        raise VlpromptError(f"clipping must have {', '.join(LIMITS)}, or be empty, and has {', '.join(clipping)}")
    found: dict[nn.Parameter, float] = {}
    for model, letter in ((discriminator.model, "d"), (generator.model, "g")):
        parts = [part for part in model if isinstance(part, nn.Linear | Norm)]
        for part in parts:
            at_end = part in ((parts[0], parts[-1]) if letter == "d" else parts[-2:])
            for name, parameter in part.named_parameters():
                last = at_end and (letter == "d" or name == "bias")
                limit = {"d": "d_ends", "g": "g_last_biases"}[letter] if last else f"{letter}_{name}"
                found[parameter] = clipping[limit]
    return found


def in_turns(batches: EpochBatches) -> Callable[[int], Iterable[Batch]]:
    """Batches for ``Adversaries``: each with another one of a different order as ``unlabeled``, then that one alone."""
    others = batches.redrawn(1)

    def turns(epoch: int) -> Iterator[Batch]:
        for batch, other in zip(batches(epoch), others(epoch), strict=True):
            yield batch | {"unlabeled": other}
            yield other

    return turns
