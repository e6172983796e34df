"""Makes the feed that a learner is trained on, from a dataset and a recipe."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from vlprompt.base.environment import Clock
from vlprompt.base.reporter import Reporter
from vlprompt.base.settings import LearnOptions
from vlprompt.data import DatasetSplits
from vlprompt.learner.contract import PromptLearner
from vlprompt.learner.held_out import Selection
from vlprompt.training.feed import ImageFeed, Loading
from vlprompt.training.recipes import Learning


def effective_views(learner: PromptLearner, options: LearnOptions) -> int | str | None:
    """Return the views of training images: at most one per epoch, and ``fresh`` if features cannot be cached.

    None if nothing is trained.
    """
    if not learner.facts.trains:  # not its parameters, since a head may create its tensors only from the images
        return None
    if options.views == "fresh" or learner.learns_from_images:
        return "fresh"
    return min(int(options.views), options.epochs)


def make_feed(
    learner: PromptLearner,
    source: DatasetSplits,
    learning: Learning,
    reporter: Reporter,
    clock: Clock | None = None,
    selection: Selection | None = None,
    later_names: Iterable[str] = (),
) -> ImageFeed:
    """Make a learner's feed from the training images of a dataset.

    Args:
        learner: the learner.
        source: the dataset; test images are left out unless the selection provides them.
        learning: settings of the training.
        reporter, clock: report and time the encoding of images.
        selection: held-out images on which settings may be chosen.
        later_names: names of classes that are tested but not trained on.
    """
    selection = selection or Selection()
    source = source if "test" in selection.sources else replace(source, test=())
    config, views = learning.config, effective_views(learner, learning.config)
    if views == "fresh" and config.views != "fresh" and "views" in learning.user_keys:
        why = "has a teacher that" if learner.facts.cacheable_images else "prompts the image tower and"
        reporter.say(f"views={config.views} has no effect: {config.method} {why} needs images, so views are fresh")
    loading = Loading(config.batch_size, views or 1, config.transform, config.seed, config.workers)
    return ImageFeed(
        source,
        learner.tower,
        loading,
        cacheable=not learner.learns_from_images,
        names=learner.image_keys,
        later_names=tuple(later_names),
        selection=selection,
        reporter=reporter,
        clock=clock or Clock(),
    )
