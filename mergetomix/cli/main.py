"""The entry point of the command line: errors become one message and an exit code."""

from __future__ import annotations

import os
import signal
import sys
import traceback

from mergetomix.cli import streams
from mergetomix.cli.commands import app
from mergetomix.errors import MergeToMixError
from mergetomix.store.disk import is_no_space

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
    out, _ = streams.make_lasting()
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        # what `nohup` starts goes on when its terminal closes
        if number is None or (name == "SIGHUP" and signal.getsignal(number) == signal.SIG_IGN):
            continue
        signal.signal(number, _interrupt)
    code = _exit_code()
    out.flush()
    if out.failure is not None and not code and not streams.is_gone(out.failure):
        _say(f"standard output cannot be written: {out.failure.strerror}", _again())
        code = 1
    sys.exit(code)


def _exit_code() -> int:
    """Runs the command, and says what went wrong."""
    try:
        app()
    except SystemExit as done:
        return done.code if isinstance(done.code, int) else int(done.code is not None)
    except MergeToMixError as error:
        again = _again() if error.exit_code == 1 else None
        _say(error.message, error.hint or again)
        return error.exit_code
    except Interrupted:
        _say("interrupted", _again())
    except Exception as error:  # noqa: BLE001  # a fault of this program: show all of it
        if is_no_space(error):
            place = getattr(error, "filename", None) or "a file"
            _say(f"disk full while writing {place}: {error}", _again())
        elif isinstance(error, OSError):
            _say(f"{type(error).__name__}: {error}", _again())
        else:
            traceback.print_exc()
            _say("this is a fault of mergetomix; please report it with the lines above", _again())
    return 1


def _interrupt(*_: object) -> None:
    raise Interrupted


def _again() -> str | None:
    """How to go on, where there is something to go on from."""
    store = sys.modules.get("mergetomix.store.store")
    return AGAIN if store is not None and store.has_kept() else None


def _say(message: str, hint: str | None) -> None:
    print(f"error: {message}", file=sys.stderr)
    if hint:
        print(f"hint: {hint}", file=sys.stderr)
    sys.stderr.flush()
