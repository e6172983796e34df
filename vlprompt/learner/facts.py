"""Facts about a learner that other code may depend on, in one object, ``learner.facts``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Predicts = Literal["alone", "online", "jointly"]
Labels = Literal["needed", "some", "any", "none"]
# the classes scored: those trained on, these in images of another dataset or domain, or others
Familiar = Literal["trained", "shifted", "new"]
# mark after a method's name, wherever its numbers are shown, if they depend on other test images
MARKS: dict[Predicts, str] = {"alone": "", "online": "online", "jointly": "transductive"}
NOTES: dict[Predicts, str] = {
    "alone": "",
    "online": "online: a prediction depends on the test images before it",
    "jointly": "transductive: the predictions for all images of a test were made jointly, and others would change them",
}


# what an implementation was verified against; shown in the table of all methods
Fidelity = Literal["code", "invariants", "reconstruction"]
FIDELITIES: dict[Fidelity, str] = {
    "code": "equal to the authors' code",
    "invariants": "checked by invariants",
    "reconstruction": "reconstruction",
}
RECONSTRUCTION = (
    "reconstruction: the authors published no code, and details that their paper leaves open were decided here"
)


def mark_of(fidelity: Fidelity | None) -> str:
    """The mark that a method's name gets for its fidelity: ``reconstruction`` or nothing."""
    return FIDELITIES[fidelity] if fidelity == "reconstruction" else ""


def marked(name: str, predicts: Predicts, *others: str) -> str:
    """A method's name, marked if its predictions depend on other test images, and with other distinguishing marks.

    >>> marked("coop", "alone"), marked("zlap", "jointly"), marked("zlap", "jointly", "k=5")
    ('coop', 'zlap (transductive)', 'zlap (transductive, k=5)')
    """
    marks = ", ".join(filter(None, [MARKS[predicts], *others]))
    return f"{name} ({marks})" if marks else name


@dataclass(frozen=True)
class Facts:
    """Facts about a method or, narrowed by its settings, about a learner.

    Attributes:
        paper: arXiv id or citation.
        trains: the parts trained by gradient, of ``text``, ``vision`` and ``head``; empty for training-free methods.
        new_classes: whether it can score classes that it was not trained on.
        cacheable_images: whether it needs only the frozen tower's features of an image, so that they can be computed
            once. A learner that builds on a saved one can cache that one's features (``PromptLearner.tower``).
        classifier: ``shared``, class features (C, D) for all images, or ``per_image``, (B, C, D).
        head: whether logits are more than similarities of image and class features.
        parts: names of the parts that logits are combined from, the first one being used alone for new classes (see
            ``vlprompt.learner.fusion``); empty if they have no parts.
        inputs: what a test batch must contain: ``image``, ``views``, ``mask``.
        labels: labelled images it learns from: ``needed``; ``some``, together with a pool; ``any`` that there are,
            together with a pool; or ``none``.
        predicts: a test image is predicted ``alone``, ``online`` (after learning from the images before it) or
            ``jointly`` with all others of its test. Results of the latter two are marked wherever they are shown.
        paper_settings: images that the authors chose hyper-parameters on, for ``selection=paper``: ``none``, ``val``
            (a few per class), ``whole_val`` or ``test``; ``unnamed`` if they have values per dataset, which the recipe
            repeats, without saying how they were chosen; None if that is not recorded.
        paper_epoch: images that they chose the epoch on, or ``last`` if they did not.
        weighs: whether labelled images can be weighted (``sample_weight``). Methods that fit themselves register this;
            for methods trained in the loop it follows from their losses.
        fidelity: what the implementation was verified against: numbers computed by the authors' ``code``, or only
            ``invariants``; or ``reconstruction``, if the authors published no code, which is marked wherever its
            numbers are shown.
    """

    paper: str
    trains: frozenset[str] = frozenset()
    new_classes: bool = True
    cacheable_images: bool = True
    classifier: Literal["shared", "per_image"] = "shared"
    head: bool = False
    parts: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ("image",)
    labels: Labels = "needed"
    predicts: Predicts = "alone"
    paper_settings: Literal["none", "val", "whole_val", "test", "unnamed"] | None = None
    paper_epoch: Literal["last", "val", "whole_val", "test"] = "last"
    weighs: bool = False
    fidelity: Fidelity = "invariants"
