"""What all figures share: style, colours that colour-blind readers can tell apart, and images to show."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ParamSpec

import torch
from torch import Tensor

from vlprompt.base.fonts import make_legible
from vlprompt.clip.frozen import FrozenCLIP

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TEXT, IMAGE, GREY = "#0072B2", "#D55E00", "#767676"  # of Okabe and Ito's palette
FONT = 8  # points, as in the captions of a two-column paper
STYLE: dict[Any, Any] = {
    "font.size": FONT,
    "axes.titlesize": FONT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "pdf.fonttype": 42,  # text in a PDF stays text
    "figure.dpi": 110,
}
P = ParamSpec("P")


def paper_figure(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Decorate a function to draw in the style of papers, with fonts for any script, and to close its figure in pyplot.

    A notebook then shows the figure once, where it is returned, and none stays open.
    """

    @functools.wraps(draw)
    def styled(*args: P.args, **kwargs: P.kwargs) -> Figure:
        import matplotlib.pyplot as plt

        with plt.rc_context(STYLE):
            figure = draw(*args, **kwargs)
            make_legible(figure)
        plt.close(figure)
        return figure

    return styled


def new_figure(width: float, height: float, **subplots: Any) -> tuple[Figure, Any]:
    """Return an empty figure of a size in inches, and its axes as ``pyplot.subplots`` gives them."""
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=(width, height), layout="constrained", **subplots)


def displayable(clip: FrozenCLIP, images: Tensor) -> Tensor:
    """Undo the image normalisation: (B, 3, H, W) to the same shape in [0, 1]."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (clip.image_mean, clip.image_std))
    return (images.cpu() * std + mean).clamp(0, 1)
