"""What a learner is, in one object that every room asks: the learner's ``facts``, narrowed by its settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Predicts = Literal["alone", "online", "jointly"]
Labels = Literal["needed", "some", "any", "none"]
# classes that are scored: those that were trained on; those, in images of another dataset or domain; or others
Familiar = Literal["trained", "shifted", "new"]
# what stands behind a method's name wherever its numbers do, if they depend on other test images
MARKS: dict[Predicts, str] = {"alone": "", "online": "online", "jointly": "transductive"}
NOTES: dict[Predicts, str] = {
    "alone": "",
    "online": "online: a prediction depends on the test images before it",
    "jointly": "transductive: the predictions for all images of a test were made jointly, and others would change them",
}


# what a method here has been held to, and stands beside its name in the table of all methods
Fidelity = Literal["code", "invariants", "reconstruction"]
FIDELITIES: dict[Fidelity, str] = {
    "code": "equal to the authors' code",
    "invariants": "checked by invariants",
    "reconstruction": "reconstruction",
}
RECONSTRUCTION = (
    "reconstruction: there was no code of the authors' to follow, and what their text leaves open was decided here"
)


def mark_of(fidelity: Fidelity | None) -> str:
    """What stands behind a method's name for what it was held to: ``reconstruction``, or nothing."""
    return FIDELITIES[fidelity] if fidelity == "reconstruction" else ""


def marked(name: str, predicts: Predicts, *others: str) -> str:
    """A method's name with the mark of predictions that depend on other test images, and with what else tells it apart.

    >>> marked("coop", "alone"), marked("zlap", "jointly"), marked("zlap", "jointly", "k=5")
    ('coop', 'zlap (transductive)', 'zlap (transductive, k=5)')
    """
    told = ", ".join(filter(None, [MARKS[predicts], *others]))
    return f"{name} ({told})" if told else name


@dataclass(frozen=True)
class Facts:
    """What is true of a method or, narrowed by settings, of one learner.

    Attributes:
        paper: arXiv id or citation.
        trains: of ``text``, ``vision`` and ``head``, what learns by gradient; empty for training-free methods.
        new_classes: whether it can score classes that it did not see.
        cacheable_images: whether the frozen tower's features are all that it needs of an image, so that they can be
            computed once. Those of a saved learner that it stands on can be too (``PromptLearner.tower``).
        classifier: class features ``shared`` by all images, (C, D), or ``per_image``, (B, C, D).
        head: whether logits are more than similarities of image and class features.
        parts: names of the parts that logits are fused of, the first being what other classes are scored by (see
            ``vlprompt.learner.fusion``); empty where they are in one piece.
        inputs: what a test batch must carry: ``image``, ``views``, ``mask``.
        labels: whether labelled images are ``needed``, ``some`` of them beside a pool, ``any`` there are beside a pool,
            or ``none``.
        predicts: whether a test image is predicted ``alone``; ``online``, with what was learnt from the images before
            it; or ``jointly`` with all others of its test. Results of the latter two are marked wherever they stand.
        paper_settings: what images the authors chose hyper-parameters on, for ``selection=paper``: ``none``, ``val``
            (a few a class), ``whole_val`` or ``test``; ``unnamed`` where they have values by dataset, which the recipe
            repeats, and do not say on what images they chose them; None if that is not recorded.
        paper_epoch: what images they chose the epoch on: ``last`` if on none.
        weighs: whether some labelled images can count more than others (``sample_weight``). Methods that fit themselves
            register it; of others it follows, where the loop trains them on labelled images by a loss that does.
        fidelity: what it was held to: numbers that the authors' ``code`` computed; ``invariants`` alone; or, a
            ``reconstruction``, what the authors wrote of a method whose code nobody has, which is marked wherever its
            numbers stand.
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
