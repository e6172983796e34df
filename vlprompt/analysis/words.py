"""The words of the vocabulary that are nearest to learnt context vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vlprompt.analysis.figures import FONT, GREY, new_figure, paper_figure
from vlprompt.base.checks import checked
from vlprompt.base.sanitizing import figure_text
from vlprompt.clip.frozen import FrozenCLIP
from vlprompt.clip.openclip import SimpleTokenizer
from vlprompt.errors import VlpromptError
from vlprompt.learner.contract import PromptLearner
from vlprompt.learner.prompts import TextPrompt
from vlprompt.learner.recording import TextRecorder, extra_edits

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SPACING_SAMPLE = 512  # words whose own nearest words are looked up
CAVEAT = "a vector that is farther from every word than words are from each other stands for none of them"


@dataclass(frozen=True)
class NearestWords:
    """The nearest words of S sets of n learnt vectors.

    Attributes:
        sets: S names: the class of a class-specific context, the prompt of a collection, otherwise "context".
        words: S x n x top words, nearest first; a token that only begins a word ends in "-".
        distances: (S, n, top), Euclidean, in the space of token embeddings.
        spacing: median distance of a word to its own nearest word, the scale to read ``distances`` against.
    """

    sets: tuple[str, ...]
    words: list[list[list[str]]]
    distances: Tensor
    spacing: float

    def __str__(self) -> str:
        lines = [f"words are {self.spacing:.2f} apart (median); {CAVEAT}"]
        for name, tokens, rows in zip(self.sets, self.words, self.distances.tolist(), strict=True):
            for i, (words, far) in enumerate(zip(tokens, rows, strict=True), start=1):
                near = "  ".join(f"{word} ({d:.2f})" for word, d in zip(words, far, strict=True))
                lines.append(f"{name} {i:>2}  {near}")
        return "\n".join(lines)


@checked
@torch.no_grad()
def nearest_words(learner: PromptLearner, top: int = 5, vocabulary: Sequence[str] | None = None) -> NearestWords:
    """Return the words whose embeddings are nearest to each learnt context vector, as in CoOp's Table 4.

    Read it with care. A learnt vector need not lie near any word: compare its distance with ``spacing``, the distance
    between words. CoOp's authors found few nearest words that make sense, and a word that is near in this space need
    not do to the text tower what the vector does. Vectors of deeper blocks have no words and are left out. A context
    that depends on the image (CoCoOp) is shown as it is before an image's part is added, one that is generated (PRE,
    UPT) as it enters the tower.

    Args:
        learner: a learner with a text context.
        top: the number of words per vector.
        vocabulary: words to choose from, each one token; None takes every token with an embedding of its own in the
            backbone. For ``vlprompt-tiny`` these are the words of its captions.

    Raises:
        VlpromptError: the learner learns no context, the tokenizer's words cannot be read, or a word is not one token.
    """
    contexts = _contexts(learner)
    ids, table = _candidates(learner.clip, vocabulary)  # (V,), (V, d_t)
    top = min(top, len(ids))
    vectors = torch.cat([ctx.flatten(0, -3) if ctx.dim() > 2 else ctx.unsqueeze(0) for ctx in contexts])  # (S, n, d_t)
    distances, nearest = torch.cdist(vectors, table).topk(top, largest=False)  # (S, n, top)
    names = [_word(learner.clip, token) for token in ids.tolist()]
    words = [[[names[i] for i in token] for token in tokens] for tokens in nearest.tolist()]
    return NearestWords(_set_names(learner, len(vectors)), words, distances.cpu(), _spacing(table))


def _contexts(learner: PromptLearner) -> list[Tensor]:
    """The contexts that enter the text tower, each (n, d_t) or (S, n, d_t)."""
    if learner.facts.classifier == "per_image":
        return [module.ctx for module in learner.modules() if isinstance(module, TextPrompt)]
    recorder = TextRecorder()
    with extra_edits(learner, recorder):
        learner.text_features()
    contexts = [prompts.context for prompts in recorder.calls if prompts.context is not None]
    if not contexts:
        raise VlpromptError(f"{learner.method} with these settings learns no words of a text prompt: use it on coop")
    return contexts


def _candidates(clip: FrozenCLIP, vocabulary: Sequence[str] | None) -> tuple[Tensor, Tensor]:
    """Token ids (V,) to choose from, and their embeddings (V, d_t)."""
    if vocabulary is not None:
        counts = clip.count_tokens(vocabulary).tolist()
        for word, count in zip(vocabulary, counts, strict=True):
            if count != 1:
                raise VlpromptError(f"'{word}' is {count} tokens of {clip.name}'s vocabulary: give words of one token")
        start = len(clip.start_embedding())
        ids = clip.tokenize(vocabulary)[:, start].unique()
        return ids, clip.text.embed(ids)
    ids = torch.arange(clip.text.module.token_embedding.num_embeddings, device=clip.device)
    table = clip.text.embed(ids)
    # tokens that no caption held may share one row, as in vlprompt-tiny: where most do, the median is that row
    own = (table != table.median(dim=0).values).any(dim=1)
    own[list(getattr(clip.tokenizer, "all_special_ids", []))] = False  # start and end of text are no words
    return ids[own], table[own]


def _word(clip: FrozenCLIP, token: int) -> str:
    """A token as text; one that only begins a word ends in a hyphen."""
    tokenizer: Any = clip.tokenizer
    if isinstance(tokenizer, SimpleTokenizer):
        text = tokenizer.decode([token])
        return text.strip() if text.endswith(" ") else f"{text}-"
    try:
        return str(tokenizer.tokenizer.decode([token]))  # OpenCLIP's wrapper around one of Hugging Face's
    except AttributeError:
        raise VlpromptError(f"the tokenizer of {clip.name} cannot turn tokens into words") from None


def _spacing(table: Tensor) -> float:
    """Median distance of evenly spaced rows of (V, d_t) to the nearest other row."""
    sample = torch.linspace(0, len(table) - 1, min(SPACING_SAMPLE, len(table)), device=table.device).long()
    apart = torch.cdist(table[sample], table).scatter(1, sample[:, None], float("inf"))
    return float(apart.amin(dim=1).median())


def _set_names(learner: PromptLearner, count: int) -> tuple[str, ...]:
    if count == 1:
        return ("context",)
    specific = any(isinstance(m, TextPrompt) and m.class_specific for m in learner.modules())
    return learner.class_names if specific else tuple(f"prompt {i + 1}" for i in range(count))


@checked
@paper_figure
def plot_nearest_words(found: NearestWords, set_index: int = 0) -> Figure:
    """Draw one set's nearest words as a table; the darker a cell, the nearer its word on the scale of word spacing.

    Args:
        found: what ``nearest_words`` returned.
        set_index: which of the S sets.
    """
    words, distances = found.words[set_index], found.distances[set_index]
    n, top = distances.shape
    figure, axes = new_figure(0.5 + 1.15 * top, 0.55 + 0.24 * n)
    axes.axis("off")
    nearness = (found.spacing / distances.clamp_min(1e-6)).clamp(max=1)  # 1 where a vector is as near as a word
    colours = [[(0.0, 0.447, 0.698, 0.45 * float(x) ** 2) for x in row] for row in nearness]
    cells = [
        [f"{figure_text(word)}  {d:.2f}" for word, d in zip(row, far, strict=True)]
        for row, far in zip(words, distances.tolist(), strict=True)
    ]
    table = axes.table(
        cells, colours, "center", colWidths=[1 / top] * top, rowLabels=[f" {i + 1} " for i in range(n)],
        bbox=(0, 0, 1, 1),
    )  # fmt: skip
    table.auto_set_font_size(False)
    table.set_fontsize(FONT)
    for cell in table.get_celld().values():
        cell.set_edgecolor("white")
    axes.set_title(f"{found.sets[set_index]}: nearest words and their distances", loc="left")
    figure.supxlabel(f"words are {found.spacing:.2f} apart (median of their own nearest)", fontsize=FONT, color=GREY)
    return figure
