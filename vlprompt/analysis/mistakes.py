"""A contact sheet of the most confident mistakes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vlprompt.analysis.figures import FONT, GREY, new_figure, paper_figure
from vlprompt.analysis.inspection import Inspection
from vlprompt.base.checks import at_least
from vlprompt.base.fonts import shorten
from vlprompt.base.sanitizing import figure_text
from vlprompt.errors import VlpromptError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS, SIZE, WIDEST = 6, 1.35, 20  # images in a row, inches of each, columns of a class name


@paper_figure
def plot_mistakes(inspection: Inspection, most: int = 24) -> Figure:
    """Draw misclassified images, the most confident mistake first, with the predicted and the true class.

    Args:
        inspection: one whose images can be opened.
        most: the number of images at most.

    Raises:
        VlpromptError: there are no mistakes, or an image cannot be read.
    """
    most = at_least("most", most, 1)
    places = inspection.mistakes(most)
    if not places or inspection.open_image is None:
        lacking = "no image was misclassified" if not places else "there are features and no images"
        raise VlpromptError(f"there is no contact sheet of {inspection.title}: {lacking}")
    rows = -(-len(places) // COLUMNS)
    columns = min(COLUMNS, len(places))
    figure, panels = new_figure(
        SIZE * max(columns, 3), (SIZE + 0.3) * rows + 0.45, nrows=rows, ncols=columns, squeeze=False
    )
    said = inspection.said
    for axes in panels.flat:
        axes.set_axis_off()
    for axes, place in zip(panels.flat, places, strict=False):
        image = inspection.open_image(place)
        image.thumbnail((200, 200))
        axes.imshow(image)
        names = (inspection.class_names[int(each[place])] for each in (said.predicted, said.label))
        predicted, true = (figure_text(shorten(name, WIDEST)) for name in names)
        axes.set_title(f"{predicted} {said.confidence[place]:.0%}", fontsize=6.5, pad=9)
        axes.text(0.5, 1.02, f"is {true}", transform=axes.transAxes, fontsize=6, color=GREY, ha="center", va="bottom")
    total = len(inspection.mistakes())
    which = f"all {total:,}" if len(places) == total else f"the {len(places)} most confident of {total:,}"
    caption = f"{which} mistakes: prediction, its probability and the true class"
    figure.suptitle(figure_text(f"{inspection.title}\n{caption}"), fontsize=FONT)
    return figure
