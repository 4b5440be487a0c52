"""The executor that works in the process that asks, one piece after the other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from mergetomix.errors import UserError
from mergetomix.executors.work import CarryOut, Done, FinetuneWork, Work, attempt


class InProcess:
    """Carries out every piece of work when its result is asked for."""

    def __init__(self, carry_out: CarryOut) -> None:
        self._carry_out = carry_out

    num_workers = 1

    def run(self, work: Iterable[Work]) -> Iterator[Done]:
        """Yields the end of every piece of work, in the order of the work."""
        return (attempt(self._carry_out, each) for each in work)

    def close(self) -> None:
        """Does nothing: there are no workers."""


class WithoutTraining(InProcess):
    """Scores models as InProcess does, and refuses to train one.

    A result is then that of a run that was made, whatever the store lacks of it.
    """

    def run(self, work: Iterable[Work]) -> Iterator[Done]:
        """Yields the end of every piece of work. Raises UserError if it is a training."""
        for each in work:
            if isinstance(each, FinetuneWork):
                what = f"the store lacks the fine-tune on {each.mixture}"
                raise UserError(what, hint="mergetomix run makes it; nothing is trained here")
            yield attempt(self._carry_out, each)
