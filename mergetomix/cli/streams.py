"""Standard output and error that may close or fill up without ending a run."""

from __future__ import annotations

import errno
import os
import sys
from typing import Any, TextIO


class Lasting:
    """A stream whose reader may go away, or whose disk may fill: what is written then is dropped.

    `failure` is the error that ended it, None while it lasts.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.failure: OSError | None = None

    def write(self, text: str) -> int:
        """Writes a text, if anybody reads it."""
        try:
            return self._stream.write(text)
        except OSError as error:
            self._end(error)
            return len(text)

    def flush(self) -> None:
        """Hands on what was written."""
        try:
            self._stream.flush()
        except OSError as error:
            self._end(error)

    def writelines(self, lines: Any) -> None:
        """Writes texts."""
        for line in lines:
            self.write(line)

    def _end(self, error: OSError) -> None:
        self.failure = self.failure or error
        # what is still in its buffer goes there too, at the end of the process at the latest
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def make_lasting() -> tuple[Lasting, Lasting]:
    """Makes standard output and error such streams, and returns them.

    A stream that is closed from the start leads nowhere: else the next file that is opened would
    get its number, and what any library prints.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    out, err = (
        Lasting(os.fdopen(number, "w", closefd=False) if stream is None else stream)
        for number, stream in ((1, sys.stdout), (2, sys.stderr))
    )
    sys.stdout, sys.stderr = out, err
    return out, err


def is_gone(error: OSError) -> bool:
    """Returns whether a stream ended as its reader had read enough, such as `head`."""
    return error.errno in (errno.EPIPE, errno.ECONNRESET)
