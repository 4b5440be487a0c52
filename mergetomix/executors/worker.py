"""A process that works for another one on this machine: `python -m mergetomix.executors.worker FD`.

FD is its end of a pair of sockets. It reads what to open, says that it is ready, and carries out
one piece of work after the other. It ends with the process that started it, however that ends.
"""

from __future__ import annotations

import os
import pickle
import queue
import signal
import sys
import threading
import traceback
from multiprocessing.connection import Connection
from typing import Any

from mergetomix.executors.messages import (
    CannotOpen,
    Message,
    Opens,
    Progress,
    Ready,
    Teller,
    plain,
    portable,
)
from mergetomix.executors.work import Failure, Work, attempt, whereabouts


def main() -> None:
    """Works until there is no more to do, or nobody to do it for."""
    # Ctrl-C is for the process that leads: it ends its workers
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    connection = Connection(int(sys.argv[1]))
    waiting: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(connection, waiting), daemon=True).start()
    opening = waiting.get()
    sys.path[:] = opening["path"]
    lock = threading.Lock()

    def tell(message: Message) -> None:
        with lock:
            connection.send(message)

    try:
        opens: Opens = pickle.loads(opening["opens"])  # noqa: S301  # from who started this process
        _set_threads(opening["threads"])
        _work(opens, waiting, tell)
    except BrokenPipeError:
        os._exit(1)  # nobody is left to work for
    except Exception as error:  # noqa: BLE001  # who started this process hears of it
        failure = Failure(error, traceback.format_exc(), whereabouts())
        tell(CannotOpen(plain(failure)))


def _work(opens: Opens, waiting: queue.SimpleQueue[Any], tell: Any) -> None:
    def progress(message: Progress) -> None:
        tell(message)

    with opens(Teller(progress)) as carry_out:
        tell(Ready(whereabouts()))
        while (work := waiting.get()) is not None:
            tell(portable(attempt(carry_out, work)))


def _read(connection: Connection, waiting: queue.SimpleQueue[Any]) -> None:
    """Reads what is sent, and ends this process if the one that sends is gone."""
    while True:
        try:
            found: Work | dict[str, Any] | None = connection.recv()
        except (EOFError, OSError):
            os._exit(1)
        waiting.put(found)


def _set_threads(num: int | None) -> None:
    if num is not None:
        import torch

        torch.set_num_threads(num)


if __name__ == "__main__":
    main()
