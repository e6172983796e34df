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
    """Any method as a scikit-learn classifier of images: works in pipelines, cross-validation and grid search.

    It trains as ``vlprompt train`` does: the same loop, the method's few-shot recipe, and cached image features if the
    method leaves the image tower alone. The same images in the same order with the same seed give the same weights.

    X is a sequence of N images: paths, ``PIL.Image``s, byte arrays (H, W, 3), byte tensors (3, H, W), float tensors
    (3, S, S) that went through ``clip.preprocess``, one array or tensor of them, or a ``torch.utils.data.Dataset``. For
    methods that leave the image tower alone it may also be features (N, D) from ``vlprompt.image_features``, so that
    cross-validation and grid search encode nothing. y has N labels, names or integers. A transductive method
    (``method_info(name)["predicts"]``) predicts all images in X jointly: the prediction for an image then depends on
    the others.

    Args:
        method: one of ``vlprompt.list_methods()``, or ``auto`` to choose one by cross-validation on X.
        backbone: a name as for ``vlprompt.load_clip``, or a ``FrozenCLIP``, which clones share.
        pretrained: tag of the pretrained weights, for a backbone given by name.
        class_names: words for the prompts if the labels are not names: one per class in the order of ``classes_``, or a
            dictionary from labels to names, which may include classes without training images.
        templates: hand-written templates, as for ``templates=`` of ``vlprompt train``.
        options: more settings of training or of the method, such as ``{"n_ctx": 4, "optimizer": "adam"}``; for ``auto``
            also its candidates, such as ``{"candidates": ["zero_shot", "gda(alpha=3)"], "folds": 4}``.
        epochs, lr, batch_size, views: override the recipe, see ``vlprompt train --help``.
        mirror: whether a mirrored image still shows its class (not so for digits).
        precision, device: of the backbone.
        selection: ``fixed`` chooses nothing. ``fewshot_val`` holds out a fifth of each class's images (between one and
            four, drawn by ``random_state``), does not train on them, and uses the hyper-parameters of the method's grid
            and the epoch that are best on them.
        class_weight: weight of each class's images in training, as in scikit-learn: ``balanced`` gives all classes the
            same total weight; a dictionary gives weights by label.
        budget: for ``auto``, time for choosing and training, such as ``90s`` or ``10min``; None means two minutes.
        workers: processes that decode training images, and threads that decode images to predict.
        on_unreadable: ``skip`` leaves out unreadable files in ``fit``, with a warning; ``stop`` raises an error, as
            prediction always does.
        calibrate: ``temperature`` fits one number that makes the probabilities match the accuracy, on the images that
            ``selection=fewshot_val`` held out, or else by cross-fitting on the training images (two more trainings).
        min_probability: leave an image unanswered if its largest probability is below this.
        coverage: share of images to answer, such as 0.9; ``fit`` chooses the probability threshold for it on the same
            images as ``calibrate``.
        unsure: what ``predict`` returns for an image that is left unanswered.
        warm_start: whether ``fit`` continues from what the previous call learnt.
        random_state: seed of initial weights, batches and augmentation; None draws a new one each time.
        verbose: report the progress of training.

    Attributes:
        learner_: the trained ``PromptLearner``; ``save_pretrained(folder)`` saves it.
        classes_: (C,) labels, sorted.
        choice_: for ``auto``, the chosen method; its ``table()`` lists the candidates.
        history_: one record per epoch of training.
        searches_: the hyper-parameters chosen from grids, with every point that was tried.
        pseudo_labels_: one dictionary for each time the method pseudo-labelled images: ``index`` (M,) into X followed
            by X_unlabelled, ``label`` and ``confidence``.
        calibration_: the temperature and threshold found on held-out images, see ``vlprompt.learner.calibration``; None
            if neither was asked for.
        n_features_in_: D, if X was features.

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
        """Train on images X and labels y; a ``Dataset`` of (image, label) pairs needs no y.

        Args:
            X: images, or features of them.
            y: labels. Methods that learn from a pool (``method_info(name)["labels"]`` is some or any) accept -1 for
                unlabelled images, as scikit-learn does; if all are unlabelled, ``class_names`` defines the classes.
            X_unlabelled: unlabelled images, or features of them, for such methods.
            sample_weight: weight (N,) of each image in X; 0 ignores it. Training losses use weights relative to their
                mean; heads with a closed-form fit treat them as numbers of copies. Methods that cannot use weights
                (``method_info(name)["weighs"]``) refuse them.

        Raises:
            VlpromptError: a setting, an image or a label is invalid; raised before training starts.
        """
        needs = labels_asked(self)
        if X_unlabelled is not None and needs == "needed":
            raise VlpromptError(f"{self.method} learns from labelled images only: leave X_unlabelled out")
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
        """Train one epoch on X, at the recipe's learning rate, starting from what was learnt so far.

        Args:
            X: as for ``fit``. Methods that leave the image tower alone see the centre crop of each image.
            y: labels of X.
            classes: all labels that will ever occur; required in the first call.
            sample_weight: as for ``fit``.
        """
        first = not hasattr(self, "learner_")
        if self.method == AUTO and first:
            raise VlpromptError(f"method={AUTO} chooses on all images, and partial_fit sees only some: call fit first")
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
        """Add a class of which no image was seen; from now on it is predicted as well.

        Args:
            name: the class name, for the prompt.
            label: its label; by default the name, or the next integer if labels are integers.

        Raises:
            VlpromptError: the method cannot score new classes, or the label is taken.
        """
        check_is_fitted(self, "learner_")
        named = self.classes_.dtype.kind in "OUS"
        if not isinstance(name, str) or not name.strip():
            raise VlpromptError(f"a class name must be a text, not {told(name)}")
        label = (name if named else int(self.classes_.max()) + 1) if label is None else label
        if isinstance(label, str) != named or not isinstance(label, (str, Number)):
            raise VlpromptError(f"a label must be a {'text' if named else 'number'} like the others, not {told(label)}")
        if label in self.classes_.tolist():
            raise VlpromptError(f"there is already a class {label!r}")
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
        """Train on checked data: from scratch if ``classes`` are given, one pass if ``once``; labels may be missing."""
        known = self.classes_ if classes is None else classes
        if len(known) < 2:
            raise VlpromptError(f"there is only 1 class, {known.tolist()[0]!r}, and a classifier needs at least two")
        unknown = np.setdiff1d(y, known)
        if len(unknown):
            hint = "add it with add_class" if classes is None else "class_names or classes lack it"
            raise VlpromptError(f"the label {unknown.tolist()[0]!r} is not one of the classes: {hint}")
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
        """Train ``learner_``; ``make`` creates untrained copies of it, unless this continues an earlier training."""
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
        """Return logits (N, C); with two classes, the second's minus the first's, (N,)."""
        logits = self._logits(X)
        return (logits[:, 1] - logits[:, 0] if logits.shape[1] == 2 else logits).numpy()

    def report(self, X: Any, y: ArrayLike | None = None, *, check_data: bool = True) -> Inspection:
        """Evaluate on labelled images one by one: accuracy overall and per class, and the most confident mistakes.

        Args:
            X: images that were not trained on, or features of them; as for ``fit``.
            y: their labels, among the classes that were trained on.
            check_data: also look for suspicious labels and near-duplicates among them.

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
        """Images as a sequence, or features as fp32 rows, and labels; checked as scikit-learn does."""
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
    """Rows in memory that torch may share; those of a table may be read-only."""
    return rows if rows.flags.writeable else rows.copy()
