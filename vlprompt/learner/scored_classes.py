"""Which classes a learner scores: those that it learnt, some of them, or others."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from vlprompt.base.checks import listed
from vlprompt.clip.name_checks import check_names
from vlprompt.clip.naming import all_names, natural_name, same_names
from vlprompt.errors import VlpromptError
from vlprompt.learner.class_subset import confirmed_places, find_subset
from vlprompt.learner.forward import ForwardPass
from vlprompt.learner.fusion import is_known
from vlprompt.learner.names import named


class ScoredClasses(ForwardPass):
    """Adds to ``ForwardPass`` that a learner can score other classes than it was created with."""

    def set_class_names(self, class_names: Sequence[str], places: Sequence[int] = ()) -> None:
        """Score other classes from now on; a learner that is bound to its classes can score all or some of those.

        Args:
            class_names: C names. For a bound learner, names of its own classes in any order, which the logits follow.
            places: positions of these classes among those it learnt, needed if several of those have the same name.

        Raises:
            VlpromptError: it is bound to its classes, and one of these is not among them.
        """
        names = named(self.config, checked_names(class_names))
        self.familiar = "trained" if is_known(names, self.trained_names) else "new"
        confirmed = confirmed_places(self.trained_names, names, places)
        same_places = confirmed in ((), self.places) or not self.facts.new_classes
        if same_places and same_names(names) == same_names(self.learnt_names):
            self.class_names, self.subset = names, None
            return
        subset = None if self.facts.new_classes else find_subset(self.learnt_names, names, places)
        if subset is not None:
            self.class_names, self.subset = names, subset
            return
        if not self.facts.new_classes:
            shared = "text" in self.facts.trains
            hint = ", or use settings that share the context (class_specific=false)" if shared else ""
            raise VlpromptError(
                f"{self.method} with these settings is bound to the classes that it learnt and cannot score new class "
                f"names: train on all classes{hint}"
            )
        check_names(self.clip, all_names(names))
        previous, self.class_names, self.places = (self.class_names, self.places), names, confirmed
        try:
            self.prepare_classes()
        except VlpromptError:
            self.class_names, self.places = previous
            self.familiar = "trained" if is_known(self.class_names, self.trained_names) else "new"
            self.prepare_classes()
            raise
        self.clear_cache()
        vars(self).pop("_rows", None)

    @contextlib.contextmanager
    def scoring(
        self, class_names: Sequence[str], places: Sequence[int] = (), templates: Sequence[str] = ()
    ) -> Iterator[None]:
        """Score other classes within a ``with`` block.

        Args:
            class_names, places: as for ``set_class_names``.
            templates: of their dataset, for methods that use them as class texts (``follows_templates``).
        """
        before, own, written = self.class_names, self.subset or self.places, self.templates
        self.set_class_names(class_names, places)
        try:
            if templates and self.follows_templates:
                self._use_templates(templates)
            yield
        finally:
            self._use_templates(written)
            self.set_class_names(before, own)

    def _use_templates(self, templates: Sequence[str]) -> None:
        """Use other templates in class texts."""
        if tuple(templates) != tuple(self.templates):
            self.templates = tuple(templates)
            self.prepare_classes()
            self.clear_cache()

    def refuse_subset(self) -> None:
        """Raise ``VlpromptError`` if it is to learn while it scores only some of its classes."""
        if self.subset is not None:
            raise VlpromptError(
                f"{self.method} is bound to {len(self.trained_names)} classes and trains on all of them, but now "
                f"scores only {len(self.class_names)}: set_class_names(learner.learnt_names) first"
            )


def checked_names(class_names: Sequence[str]) -> tuple[str, ...]:
    """Class names as a tuple: at least two, none empty. Duplicates are allowed, since ImageNet has two."""
    names = listed(class_names, "class names")
    if len(names) < 2:
        raise VlpromptError(f"a classifier needs at least two class names, got {list(names)}")
    if not all(isinstance(n, str) and natural_name(n) for n in names):
        raise VlpromptError(f"class names must be non-empty strings, got {list(names)[:5]}")
    return names
