"""How much what users and files bring may make this process do: time, memory, sizes.

Regular expressions, templates and files from elsewhere can ask for more than any machine has. They
are stopped with an error that names them.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

MOST_CHARACTERS = 2**28
"""Of one field of a row, or one text that a template writes."""
MOST_WIDTH = 10_000
"""Of a field of a format string, such as `{n:>8}`."""
MOST_RATIO = 200
"""How many times its compressed size a file may hold beyond MOST_CHARACTERS; text has 3 to 20."""
MOST_WHOLE = 2**53
"""The largest whole number of a recipe: beyond it a float is another."""
MOST_VALUES = 100_000
"""Of a recipe, aliases written out."""
MOST_SECONDS = 10.0
"""For one regular expression on one text, or one text of a template."""
_MORE_BYTES = 2**31


class Exceeded(Exception):
    """Something took longer or more memory than it may; the text says which."""


class _Late(BaseException):
    """The time is over. No library on the way takes it for an error of its own."""


@contextmanager
def limited(seconds: float = MOST_SECONDS) -> Iterator[None]:
    """Ends what is done inside after some seconds, or with 2 GiB more memory than before.

    The time is counted in the main thread alone, where signals arrive, and the memory where the
    system says how much a process has (Linux).

    Raises:
        Exceeded: it took too long, or too much.
    """
    with _time(seconds), _memory():
        try:
            yield
        except _Late:
            raise Exceeded(f"takes longer than {seconds:g} s") from None
        except (MemoryError, OverflowError):
            raise Exceeded(f"asks for more than {_MORE_BYTES // 2**30} GiB of memory") from None


@contextmanager
def _time(seconds: float) -> Iterator[None]:
    has_signals = hasattr(signal, "setitimer")
    if not has_signals or threading.current_thread() is not threading.main_thread():
        yield
        return
    if signal.getitimer(signal.ITIMER_REAL)[0]:  # somebody else's alarm, or one around this
        yield
        return

    def late(number: int, frame: FrameType | None) -> None:
        raise _Late

    before = signal.signal(signal.SIGALRM, late)
    # again and again, should something on the way go on regardless
    signal.setitimer(signal.ITIMER_REAL, seconds, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def _memory() -> Iterator[None]:
    try:
        import resource

        pages = int(Path("/proc/self/statm").read_bytes().split()[0])
    except (ImportError, OSError, ValueError):
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_AS)
    wanted = pages * resource.getpagesize() + _MORE_BYTES
    if before[0] != resource.RLIM_INFINITY and before[0] <= wanted:
        yield
        return
    resource.setrlimit(resource.RLIMIT_AS, (wanted, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
