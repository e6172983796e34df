"""``PromptClassifier``: any method as a scikit-learn classifier of images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from numbers import Number
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_consistent_length, check_is_fitted, validate_data
from torch import Tensor
from torch.utils.data import Dataset

from vlprompt.analysis.inspection import Inspection
from vlprompt.base.checks import told
from vlprompt.base.devices import Precision
from vlprompt.base.reporter import Reporter
from vlprompt.base.settings import AUTO
from vlprompt.base.threads import computing_with, threads_for
from vlprompt.choosing.choice import Choice
from vlprompt.clip.frozen import FrozenCLIP
from vlprompt.clip.loading import TINY
from vlprompt.data import resolve_templates
from vlprompt.data.in_hand import as_torch
from vlprompt.data.pairs import labels_of
from vlprompt.data.splits import NO_LABEL
from vlprompt.errors import VlpromptError
from vlprompt.estimator.answers import (
    Answers,
    asks_to_calibrate,
    calibration_of,
    check_answering,
    check_calibration,
)
from vlprompt.estimator.auto import choice_of, choose_for, new_learner
from vlprompt.estimator.given import Given
from vlprompt.estimator.held_out import accuracy_on_held_out, selection_of
from vlprompt.estimator.inputs import (
    as_images,
    check_alike,
    check_fits,
    check_one_label_each,
    holds_images,
    names_of,
    names_of_dataset,
    training_set,
)
from vlprompt.estimator.inspecting import inspect_classifier, places_of
from vlprompt.estimator.keeping import Kept
from vlprompt.estimator.pool import classes_of, joined, marked_unlabelled, told_labels
from vlprompt.estimator.settings import clip_of, labels_asked, learning_of, options_of, seed_of
from vlprompt.estimator.weights import counts_of, refuse_weights
from vlprompt.evaluation.prediction import image_logits
from vlprompt.evaluation.scoring import finite
from vlprompt.learner.contract import PromptLearner
from vlprompt.learner.held_out import Search, Selection
from vlprompt.learner.objectives import Batch, Templates
from vlprompt.learner.registration import method_facts
from vlprompt.training.cross_fitting import Make
from vlprompt.training.recipes import Learning
from vlprompt.training.trainer import BestEpoch, Trainer, TrainOptions, in_words

ROWS = 1000  # of features that are scored together


class PromptClassifier(Kept, Answers, ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """Prompt learning with scikit-learn's conventions: ``fit``, ``predict``, pipelines, cross-validation, grid search.

    Training is that of ``vlprompt train``: the same loop, the method's few-shot recipe, and cached image features where
    the method leaves the image tower alone. With the same images in the same order and the same seed it learns the
    same weights.

    X holds N images in any of these forms: paths, ``PIL.Image``s, byte arrays (H, W, 3), byte tensors (3, H, W), an
    array of them, a ``torch.utils.data.Dataset``, or float tensors (3, S, S) that went through ``clip.preprocess``.
    For methods that leave the image tower alone it may also be features (N, D) of the backbone, as
    ``vlprompt.image_features`` returns them: cross-validation and grid search then encode nothing. y holds N labels,
    names or integers. A transductive method (``method_info(name)["predicts"]``) predicts all of the X that it is given
    jointly, so that other images beside one may change its prediction.

    Args:
        method: one of ``vlprompt.list_methods()``; or ``auto``, which chooses one by cross-validation on X.
        backbone: a name as ``vlprompt.load_clip`` takes it, or a ``FrozenCLIP``, which clones share.
        pretrained: tag of a named backbone's weights.
        class_names: words for the prompts where labels are none: one for each class in the order of ``classes_``, or a
            dictionary from labels to names, which may have classes without training images.
        templates: hand-written ones, as ``templates=`` of ``vlprompt train``.
        options: more settings of training or of the method, such as ``{"n_ctx": 4, "optimizer": "adam"}``; of ``auto``
            also what it chooses among, such as ``{"candidates": ["zero_shot", "gda(alpha=3)"], "folds": 4}``.
        epochs, lr, batch_size, views: in place of the recipe's, see ``vlprompt train --help``.
        mirror: whether a mirrored image keeps its class (not so for digits).
        precision, device: of the backbone.
        selection: ``fixed`` chooses nothing. ``fewshot_val`` holds out a fifth of each class's images (at least one, at
            most four, drawn by ``random_state``), does not train on them, and takes the point of the method's grid and
            the epoch that are best on them.
        class_weight: how much a class's images count in training, as in scikit-learn: ``balanced`` makes classes count
            alike, whatever their numbers of images; a dictionary has weights by label.
        budget: of ``auto``, the time to choose and to learn in, such as ``90s`` or ``10min``; None takes two minutes.
        workers: processes that decode training images, and threads that decode those to predict.
        on_unreadable: ``skip``, with a warning, image files to fit on that cannot be read, or ``stop`` at them; those
            to predict always stop.
        calibrate: ``temperature`` fits one number that makes ``predict_proba`` mean what it says, on the images that
            ``selection=fewshot_val`` held out, or else by cross-fitting on the training images: two trainings more.
        min_probability: leave an image unanswered whose largest probability is below this.
        coverage: share of images to answer, such as 0.9; ``fit`` chooses the least probability for it on the images
            that ``calibrate`` looks at.
        unsure: what ``predict`` says of an image that it leaves unanswered.
        warm_start: let ``fit`` go on from what the last one learnt.
        random_state: seed of initial weights, batches and augmentation; None draws another each time.
        verbose: tell how training gets on.

    Attributes:
        learner_: the trained ``PromptLearner``; ``save_pretrained(folder)`` keeps it.
        classes_: (C,) labels, sorted.
        choice_: of ``auto``, the method that was chosen, and in ``table()`` what from.
        history_: one record for each epoch of training.
        searches_: what was chosen from a grid, with every point that was tried.
        pseudo_labels_: for each time that the method labelled images without a label, what it took them for: ``index``
            (M,) in X with X_unlabelled behind it, ``label`` and ``confidence``.
        calibration_: what held-out images said of the probabilities, see ``vlprompt.learner.calibration``; None if
            they were not asked.
        n_features_in_: D, where X was features.

    >>> paths, names = vlprompt.load_folder("photos")  # doctest: +SKIP
    >>> PromptClassifier(epochs=50).fit(paths, names).predict(["another.jpg"])  # doctest: +SKIP
    array(['red fox'], dtype='<U7')
    """

    learner_: PromptLearner
    classes_: np.ndarray
    choice_: Choice
    history_: list[dict[str, Any]]
    searches_: list[Search]
    pseudo_labels_: list[dict[str, np.ndarray]]

    def __init__(
        self,
        method: str = "coop",
        backbone: str | FrozenCLIP = TINY,
        pretrained: str | None = None,
        *,
        class_names: Sequence[str] | Mapping[Any, str] | None = None,
        templates: Templates = None,
        options: Mapping[str, Any] | None = None,
        epochs: int | None = None,
        lr: float | None = None,
        batch_size: int | None = None,
        views: int | str | None = None,
        mirror: bool = True,
        precision: Precision = "fp32",
        device: str = "auto",
        selection: str = "fixed",
        class_weight: Mapping[Any, float] | str | None = None,
        budget: float | str | None = None,
        workers: int = 0,
        on_unreadable: str = "skip",
        calibrate: str = "none",
        min_probability: float | None = None,
        coverage: float | None = None,
        unsure: Any = None,
        warm_start: bool = False,
        random_state: int | np.random.RandomState | None = 1,
        verbose: bool = False,
    ):
        self.method = method
        self.backbone = backbone
        self.pretrained = pretrained
        self.class_names = class_names
        self.templates = templates
        self.options = options
        self.epochs = epochs
        self.lr = lr
        self.batch_size = batch_size
        self.views = views
        self.mirror = mirror
        self.precision = precision
        self.device = device
        self.selection = selection
        self.class_weight = class_weight
        self.budget = budget
        self.workers = workers
        self.on_unreadable = on_unreadable
        self.calibrate = calibrate
        self.min_probability = min_probability
        self.coverage = coverage
        self.unsure = unsure
        self.warm_start = warm_start
        self.random_state = random_state
        self.verbose = verbose

    # Learning

    def fit(
        self, X: Any, y: ArrayLike | None = None, X_unlabelled: Any = None, sample_weight: ArrayLike | None = None
    ) -> PromptClassifier:
        """Learn prompts from images X and labels y; a ``Dataset`` of (image, label) pairs may come without y.

        Args:
            X: images, or features of them.
            y: labels. Methods that learn from a pool (``method_info(name)["labels"]`` is some or any) take -1 for no
                label, as scikit-learn does; if no image has one, ``class_names`` says what the classes are.
            X_unlabelled: images without labels, or features of them, for such methods.
            sample_weight: how much each image of X counts (N,), 0 not at all. Trained losses take it relative to its
                mean, heads that fit themselves as so many copies. Methods that have no use for it
                (``method_info(name)["weighs"]``) refuse it.

        Raises:
            VlpromptError: a setting, an image or a label is not right; told before training starts.
        """
        needs = labels_asked(self)
        if X_unlabelled is not None and needs == "needed":
            raise VlpromptError(f"{self.method} learns from labelled images alone, and X_unlabelled has no labels")
        given, missing = marked_unlabelled(y, needs, self.class_names)
        X, labels = self._checked(X, given, reset=True)
        classes = labels if missing is None or not missing.all() else classes_of(self.class_names)
        classes = np.unique(list(self.class_names) if isinstance(self.class_names, Mapping) else classes)
        if X_unlabelled is not None:
            if hasattr(X_unlabelled, "__len__") and not len(X_unlabelled):
                raise VlpromptError("X_unlabelled holds no images: give some, or leave it out")
            more = self._checked_images_or_features(X_unlabelled, reset=False)
            missing = np.r_[np.zeros(len(labels), bool) if missing is None else missing, np.ones(len(more), bool)]
            X, labels = joined(X, more), np.r_[labels, np.full(len(more), labels[0], labels.dtype)]
        again = self.warm_start and self._is_of_this_method()
        counts = counts_of(sample_weight, self.class_weight, labels, self.classes_ if again else classes)
        return self._learn(X, labels, None if again else classes, missing=missing, counts=counts)

    def partial_fit(
        self,
        X: Any,
        y: ArrayLike | None = None,
        classes: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
    ) -> PromptClassifier:
        """Go through X once, at the recipe's learning rate, from what was learnt so far.

        Args:
            X: as for ``fit``. Methods that leave the image tower alone see the centre of each image.
            y: labels of X.
            classes: all labels that will ever come; needed by the first call.
            sample_weight: as for ``fit``.
        """
        first = not hasattr(self, "learner_")
        if self.method == AUTO and first:
            raise VlpromptError(f"method={AUTO} chooses on all images, and partial_fit sees some: fit once before")
        if not first:
            classes = None
        elif classes is None:
            raise VlpromptError("the first call of partial_fit needs classes, the list of all labels")
        X, y = self._checked(X, y, reset=first)
        known = None if classes is None else np.unique(np.asarray(classes))
        every = self.classes_ if known is None else known
        counts = counts_of(sample_weight, self.class_weight, y, every, once=True)
        return self._learn(X, y, known, once=True, counts=counts)

    def add_class(self, name: str, label: Any = None) -> PromptClassifier:
        """Tell one more class apart from now on, of which no image was seen.

        Args:
            name: the class name, for the prompt.
            label: what ``predict`` calls it; by default the name, or the next integer where labels are integers.

        Raises:
            VlpromptError: the method is bound to the classes it learnt, or the label is taken.
        """
        check_is_fitted(self, "learner_")
        named = self.classes_.dtype.kind in "OUS"
        if not isinstance(name, str) or not name.strip():
            raise VlpromptError(f"a class name must be a text, not {told(name)}")
        label = (name if named else int(self.classes_.max()) + 1) if label is None else label
        if isinstance(label, str) != named or not isinstance(label, (str, Number)):
            raise VlpromptError(f"a label must be a {'text' if named else 'number'} as the others, not {told(label)}")
        if label in self.classes_.tolist():
            raise VlpromptError(f"there is a class {label!r} already")
        classes = np.unique([*self.classes_.tolist(), label])
        known = dict(zip(self.classes_.tolist(), self.learner_.class_names, strict=True)) | {label: name}
        self.learner_.set_class_names([known[each] for each in classes.tolist()])
        self.classes_ = classes
        return self

    def _learn(
        self,
        X: Any,
        y: np.ndarray,
        classes: np.ndarray | None = None,
        once: bool = False,
        missing: np.ndarray | None = None,
        counts: np.ndarray | None = None,
    ) -> PromptClassifier:
        """Train on checked data: anew if ``classes`` are given; ``once`` for a single pass; labels may be missing."""
        known = self.classes_ if classes is None else classes
        if len(known) < 2:
            raise VlpromptError(f"there is only 1 class, {known.tolist()[0]!r}, and a classifier needs at least two")
        unknown = np.setdiff1d(y, known)
        if len(unknown):
            hint = "add it with add_class" if classes is None else "class_names or classes lack it"
            raise VlpromptError(f"the label {unknown.tolist()[0]!r} is none of the classes: {hint}")
        named = self.class_names if self.class_names is not None else names_of_dataset(X, known)
        names = names_of(known, named) if classes is not None else self.learner_.class_names
        labels = np.searchsorted(known, y)
        if missing is not None:
            labels[missing] = NO_LABEL
        counted, seed = (labels if counts is None else labels[counts > 0]), seed_of(self)
        images = () if isinstance(X, np.ndarray) else X
        data = training_set(images, labels.tolist() if len(images) else (), names, mirror=self.mirror)
        templates = resolve_templates(self.templates, data)
        check_answering(self.calibrate, self.min_probability, self.coverage)
        method, own, given = self.method, None, None
        if method == AUTO:
            if classes is not None:
                options = choice_of(self.selection, self.budget, options_of(self))
                given = Given.of(X, labels, data, counts, self.on_unreadable, self.workers)
                learn = partial(learning_of, self, counted, seed)
                self.choice_ = choose_for(given, options, clip_of(self), (names, templates), learn, seed, self.verbose)
            method, own = self.choice_.method, self.choice_.settings
        learning = learning_of(self, counted, seed, method if self.method == AUTO else None, own)
        facts = method_facts(method, learning.method_settings)
        selection = selection_of(self.selection, method, learning.config, facts, once)
        if counts is not None and not (self.method == AUTO and facts.labels == "none"):
            refuse_weights(method, facts)
        clip = clip_of(self)
        check_fits(X, method, facts, clip, training=True)
        masks = "mask" in facts.inputs
        given = given or Given.of(X, labels, data, counts, self.on_unreadable, self.workers, masks)
        if classes is not None:
            make = partial(new_learner, learning, clip, names, templates)
            learner = make()
            check_fits(X, method, learner.facts, clip, training=True)
            self.learner_, self.classes_, self.history_ = learner, classes, []
        if once:
            seed = learning.config.seed + len(self.history_)  # a new draw for each pass
            learning = replace(learning, config=replace(learning.config, epochs=1, warmup_epochs=0, seed=seed))
        self._train(given, learning, selection, None if classes is None or once else make)
        return self

    def _train(self, given: Given, learning: Learning, selection: Selection, make: Make | None) -> None:
        """Train ``learner_``; ``make`` gives others like it, where it was not trained before and is not again."""
        config, reporter, before = learning.config, Reporter(quiet=not self.verbose), len(self.history_)
        threads = computing_with(threads_for(self.learner_.clip.model))
        with torch.enable_grad(), threads, reporter.bar("epoch", lines=5) as update:  # whoever calls

            def tell(stage: str, options: TrainOptions, record: dict[str, Any]) -> None:
                update(record["epoch"] + 1, options.epochs, in_words(record))

            def tell_steps(stage: str, options: TrainOptions, done: float, means: Mapping[str, float]) -> None:
                update(done, options.epochs, in_words(means))

            feed = given.feed(self.learner_, learning, reporter, selection)
            calibrating = asks_to_calibrate(self.calibrate, self.coverage)
            if calibrating:
                check_calibration(self.learner_.method, self.learner_.facts, feed, config.seed, make)
            best = BestEpoch(lambda: accuracy_on_held_out(self.learner_, feed)) if selection.epoch else None
            trainer = Trainer(config, {"seed": config.seed, "selection": best}, tell, on_steps=tell_steps)
            trainer.fit(self.learner_, feed)
            if calibrating and make is not None:
                setting, coverage = self.calibrate, self.coverage
                self.learner_.calibration = calibration_of(self.learner_, feed, make, config, setting, coverage)
        self.searches_ = selection.searches
        self.pseudo_labels_ = [told_labels(made, given.places, self.classes_) for made in feed.labellings]
        self.history_ = self.history_ + [record | {"epoch": before + record["epoch"]} for record in trainer.history]

    def _is_of_this_method(self) -> bool:
        if self.method == AUTO:
            return hasattr(self, "choice_")
        return hasattr(self, "learner_") and self.learner_.method == self.method

    # Predicting

    def decision_function(self, X: Any) -> np.ndarray:
        """Return the logits (N, C); of two classes, the second's less the first's: (N,)."""
        logits = self._logits(X)
        return (logits[:, 1] - logits[:, 0] if logits.shape[1] == 2 else logits).numpy()

    def report(self, X: Any, y: ArrayLike | None = None, *, check_data: bool = True) -> Inspection:
        """Look at labelled images one by one: how often the classifier is right, of which classes, its surest mistakes.

        Args:
            X: images that were not learnt from, or features of them; as for ``fit``.
            y: their labels, of the classes that were learnt.
            check_data: look for labels that seem wrong and for near-duplicates among them too.

        Returns:
            An ``Inspection``: ``save(folder)`` writes its page, contact sheet and tables, ``to_frame()`` makes a table.

        Raises:
            VlpromptError: an image cannot be read, or a label is unknown.
        """
        check_is_fitted(self, "learner_")
        X, labels = self._checked(X, y, reset=False)
        places = places_of(labels, self.classes_)
        found = inspect_classifier(self.learner_, self.predict_proba, X, places, check_data, self.workers)
        return replace(found, min_probability=self._threshold())

    def _logits(self, X: Any) -> Tensor:
        check_is_fitted(self, "learner_")
        X = self._checked_images_or_features(X, reset=False)
        check_fits(X, self.learner_.method, self.learner_.facts, self.learner_.clip)
        if not isinstance(X, np.ndarray):
            return image_logits(self.learner_, X, threads=self.workers)
        learner = self.learner_
        rows: Iterator[Batch] = ({"image_features": part} for part in torch.from_numpy(X).split(ROWS))
        return finite(torch.cat([logits.cpu() for logits in learner.predict_all(rows)]), learner)

    # What comes in

    def _checked(self, X: Any, y: Any, reset: bool) -> tuple[Any, np.ndarray]:
        """Images as a sequence or features as fp32 rows, and labels; as scikit-learn checks them."""
        X = as_torch(X)
        if isinstance(X, Dataset) and y is None:
            y = labels_of(X)
        check_one_label_each(y)
        check_alike(y)
        if holds_images(X):
            X, y = self._checked_images_or_features(X, reset), validate_data(self, y=y, reset=reset)
            check_consistent_length(X, y)
        else:
            X, y = validate_data(self, X, y, dtype=np.float32, reset=reset)
            X = _writable(X)
        check_classification_targets(y)
        return X, y

    def _checked_images_or_features(self, X: Any, reset: bool) -> Any:
        X = as_torch(X)
        if holds_images(X):
            if reset:
                self.__dict__.pop("n_features_in_", None)
            return as_images(X)
        return _writable(validate_data(self, X, dtype=np.float32, reset=reset))


def _writable(rows: np.ndarray) -> np.ndarray:
    """Rows that torch may share: a table's may be read-only."""
    return rows if rows.flags.writeable else rows.copy()
