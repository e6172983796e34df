"""From a learner, a dataset and a recipe to the feed that the learner is trained on."""

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
    """Return the views of training images: no more than epochs, and fresh ones if images must be encoded anew."""
    if not learner.facts.trains:  # and not its tensors, which a head may first make of the images
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
    """Return the training images of ``source`` as a learner's feed, with what it may choose settings on.

    Test images are not included, unless the selection provides them; of classes that are tested later, only names are.
    """
    selection = selection or Selection()
    source = source if "test" in selection.sources else replace(source, test=())
    config, views = learning.config, effective_views(learner, learning.config)
    if views == "fresh" and config.views != "fresh" and "views" in learning.given:
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
