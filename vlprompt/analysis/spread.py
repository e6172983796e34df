"""How much zero-shot accuracy depends on the wording of the template alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vlprompt.analysis.figures import GREY, IMAGE, TEXT, new_figure, paper_figure
from vlprompt.base.checks import checked
from vlprompt.base.fonts import shorten
from vlprompt.base.sanitizing import figure_text
from vlprompt.data import resolve_templates
from vlprompt.data.splits import DatasetSplits
from vlprompt.errors import VlpromptError
from vlprompt.evaluation.scoring import evaluate, format_spread
from vlprompt.learner.contract import PromptLearner
from vlprompt.learner.facts import marked
from vlprompt.learner.objectives import Templates

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST, ENDS = 24, 10  # up to MOST templates are all drawn; of more, the ENDS best and the ENDS worst


@dataclass(frozen=True)
class TemplateSpread:
    """Zero-shot accuracy of each template by itself beside a learner's, in percent, on the same test images.

    Attributes:
        by_template: accuracy of each template.
        ensemble: accuracy of the mean feature over all of them.
        learner: accuracy of the learner.
        method: the learner's method, marked if it does not predict each image alone.
        n_images: the number of test images.
    """

    by_template: dict[str, float]
    ensemble: float
    learner: float
    method: str
    n_images: int

    @property
    def spread(self) -> float:
        """Accuracy of the best template minus that of the worst, in percentage points."""
        return max(self.by_template.values()) - min(self.by_template.values())


@checked
def template_spread(
    learner: PromptLearner, splits: DatasetSplits, templates: Templates = "imagenet7", limit: int | None = None
) -> TemplateSpread:
    """Score zero-shot with each template by itself, with all of them, and the learner (see ``format_spread``).

    A gain over zero-shot that is smaller than the spread could also come from another wording.

    Args:
        learner: any learner; it scores the classes of ``splits``.
        splits: the dataset, from ``load_split``, or a half of it.
        templates: two or more: a list, the name of a set such as ``imagenet80``, or a file.
        limit: use at most this many test images.

    Raises:
        VlpromptError: there is only one template, or the learner cannot score these classes.
    """
    chosen = resolve_templates(templates, splits)
    if len(chosen) < 2:
        raise VlpromptError("a spread needs two templates or more: give a list, imagenet7 or imagenet80")
    row = evaluate(learner, splits, templates=list(chosen), limit=limit).row
    singly = format_spread(learner.clip, splits, list(chosen), limit=limit)
    by_template = {template: 100 * accuracy for template, accuracy in singly.items()}
    return TemplateSpread(by_template, row.zero_shot, row.accuracy, marked(learner.method, row.predicts), row.n_images)


@checked
@paper_figure
def plot_template_spread(spread: TemplateSpread) -> Figure:
    """Draw one dot per template, best on top, and lines for all of them together and for the learner.

    If there are many templates, only the best and the worst are drawn.
    """
    ranked = sorted(spread.by_template.items(), key=lambda pair: pair[1])
    skip = len(ranked) - 2 * ENDS if len(ranked) > MOST else 0
    rows = [*ranked[:ENDS], None, *ranked[ENDS + skip :]] if skip else ranked
    figure, ax = new_figure(4.2, 0.8 + 0.17 * len(rows))
    for y, (_, accuracy) in ((y, row) for y, row in enumerate(rows) if row):
        ax.plot([ranked[0][1], accuracy], [y, y], color="#d0d0d0", linewidth=1)
        ax.plot(accuracy, y, "o", markersize=4, color=TEXT)
    ax.axvline(spread.ensemble, color=GREY, linestyle="--", linewidth=1, label="all templates together")
    if spread.method != "zero_shot":
        ax.axvline(spread.learner, color=IMAGE, linewidth=1.2, label=spread.method)
    ax.set_yticks(range(len(rows)), [figure_text(shorten(row[0], 40)) if row else f"… {skip} more …" for row in rows])
    ax.set(xlabel=f"accuracy (%), {spread.n_images:,} images", ylim=(-0.7, len(rows) - 0.3))
    ax.set_title(f"spread: {spread.spread:.1f} points over {len(ranked)} templates", loc="left")
    figure.legend(loc="outside lower center", ncols=2)
    return figure
