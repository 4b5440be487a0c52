"""The entry point of the command line: errors become one message and an exit code."""

from __future__ import annotations

import os
import signal
import sys
import traceback

from mergetomix.cli.commands import app
from mergetomix.errors import MergeToMixError

AGAIN = "what was computed is in the store: the same command goes on from there"


class Interrupted(BaseException):
    """Ctrl-C, or the end that a scheduler asks for. No library on the way takes it for its own."""


def main() -> None:
    """Runs the command of `sys.argv` and exits: 2 for the user's mistakes, 1 for other errors."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Threads that spin for long while they wait halve the speed if another program wants a core;
    # see docs/log.md
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    try:
        app()
    except MergeToMixError as error:
        again = AGAIN if error.exit_code == 1 else None
        _exit(error.message, error.hint or again, error.exit_code)
    except Interrupted:
        _exit("interrupted", AGAIN)
    except OSError as error:
        _exit(f"{type(error).__name__}: {error}", AGAIN)
    except Exception:  # noqa: BLE001  # a fault of this program: show all of it, and how to go on
        traceback.print_exc()
        _exit("this is a fault of mergetomix; please report it with the lines above", AGAIN)


def _interrupt(*_: object) -> None:
    raise Interrupted


def _exit(message: str, hint: str | None, code: int = 1) -> None:
    print(f"error: {message}", file=sys.stderr)
    if hint:
        print(f"hint: {hint}", file=sys.stderr)
    sys.exit(code)
