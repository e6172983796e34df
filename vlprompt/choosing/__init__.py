"""Which method for given images: candidates, cross-validated within a time (``method=auto``)."""

from typing import TYPE_CHECKING

from vlprompt.base.wiring import lazy_exports

if TYPE_CHECKING:
    from vlprompt.choosing.choice import Choice, Outcome
    from vlprompt.choosing.options import Candidate, choice_options
    from vlprompt.choosing.search import Source, choose

__all__ = ["Candidate", "Choice", "Outcome", "Source", "choice_options", "choose"]

__getattr__, __dir__ = lazy_exports(__name__)
