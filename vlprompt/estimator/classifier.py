"""``PromptClassifier``: any method as a scikit-learn classifier of images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from numbers import Number
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from vlprompt.analysis.inspection import Inspection
from vlprompt.base.checks import brief
from vlprompt.base.devices import Precision
from vlprompt.base.settings import AUTO
from vlprompt.choosing.choice import Choice
from vlprompt.clip.catalog import TINY
from vlprompt.clip.frozen import FrozenCLIP
from vlprompt.errors import VlpromptError
from vlprompt.estimator.answers import Answers
from vlprompt.estimator.checks import check_fits, check_input, check_training_input
from vlprompt.estimator.fitting import learn
from vlprompt.estimator.inspecting import inspect_classifier, positions_of
from vlprompt.estimator.keeping import Kept
from vlprompt.estimator.pool import concatenate, labels_of_names, split_off_missing
from vlprompt.estimator.settings import labels_needed
from vlprompt.estimator.weights import counts_of
from vlprompt.evaluation.prediction import image_logits
from vlprompt.evaluation.scoring import finite
from vlprompt.learner.contract import PromptLearner
from vlprompt.learner.held_out import Search
from vlprompt.learner.objectives import Batch, Templates

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
        warm_start: whether ``fit`` continues from what the previous call learnt; settings of training may change in
            between, those of another learner are refused.
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
        needs = labels_needed(self)
        if X_unlabelled is not None and needs == "needed":
            raise VlpromptError(f"{self.method} learns from labelled images only: leave X_unlabelled out")
        y, missing = split_off_missing(y, needs, self.class_names)
        X, labels = self._check_training_input(X, y, reset=True)
        classes = labels if missing is None or not missing.all() else labels_of_names(self.class_names)
        classes = np.unique(list(self.class_names) if isinstance(self.class_names, Mapping) else classes)
        if X_unlabelled is not None:
            if hasattr(X_unlabelled, "__len__") and not len(X_unlabelled):
                raise VlpromptError("X_unlabelled holds no images: give some, or leave it out")
            more = self._check_input(X_unlabelled, reset=False)
            missing = np.r_[np.zeros(len(labels), bool) if missing is None else missing, np.ones(len(more), bool)]
            X, labels = concatenate(X, more), np.r_[labels, np.full(len(more), labels[0], labels.dtype)]
        again = self.warm_start and self._is_of_this_method()
        counts = counts_of(sample_weight, self.class_weight, labels, self.classes_ if again else classes)
        learn(self, X, labels, None if again else classes, missing=missing, counts=counts)
        return self

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
        X, y = self._check_training_input(X, y, reset=first)
        known = None if classes is None else np.unique(np.asarray(classes))
        counts = counts_of(sample_weight, self.class_weight, y, self.classes_ if known is None else known, once=True)
        learn(self, X, y, known, once=True, counts=counts)
        return self

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
            raise VlpromptError(f"a class name must be a text, not {brief(name)}")
        label = (name if named else int(self.classes_.max()) + 1) if label is None else label
        if isinstance(label, str) != named or not isinstance(label, (str, Number)):
            raise VlpromptError(
                f"a label must be a {'text' if named else 'number'} like the others, not {brief(label)}"
            )
        if label in self.classes_.tolist():
            raise VlpromptError(f"there is already a class {label!r}")
        classes = np.unique([*self.classes_.tolist(), label])
        known = dict(zip(self.classes_.tolist(), self.learner_.class_names, strict=True)) | {label: name}
        self.learner_.set_class_names([known[each] for each in classes.tolist()])
        self.classes_ = classes
        return self

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
        X, labels = self._check_training_input(X, y, reset=False)
        places = positions_of(labels, self.classes_)
        inspection = inspect_classifier(self.learner_, self.predict_proba, X, places, check_data, self.workers)
        return replace(inspection, min_probability=self._threshold())

    def _logits(self, X: Any) -> Tensor:
        check_is_fitted(self, "learner_")
        X = self._check_input(X, reset=False)
        check_fits(X, self.learner_.method, self.learner_.facts, self.learner_.clip)
        if not isinstance(X, np.ndarray):
            return image_logits(self.learner_, X, threads=self.workers)
        learner = self.learner_
        rows: Iterator[Batch] = ({"image_features": part} for part in torch.from_numpy(X).split(ROWS))
        return finite(torch.cat([logits.cpu() for logits in learner.predict_all(rows)]), learner)

    def _check_training_input(self, X: Any, y: Any, reset: bool) -> tuple[Any, np.ndarray]:
        return check_training_input(self, X, y, reset)

    def _check_input(self, X: Any, reset: bool) -> Any:
        return check_input(self, X, reset)
