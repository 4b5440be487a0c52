"""Temporary folders of a store, and which of them belong to processes that are dead."""

from __future__ import annotations

import hashlib
import os
import re
import socket
import time
from pathlib import Path

from mergetomix.store.disk import stats

# A folder of another host cannot be asked whether its writer lives; one untouched for so long is
# taken for dead.
_ABANDONED_S = 7 * 24 * 3600.0
# Names of the temporary folders that this process writes: its number may have been a dead
# process's before.
writing: set[str] = set()


def host_tag() -> str:
    """Returns eight digits that tell this host from others."""
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


def is_leftover(folder: Path) -> bool:
    """Returns whether a folder under tmp belongs to a process that is dead; False in doubt."""
    import psutil

    match = re.fullmatch(r".+\.([1-9]\d{0,8})\.([0-9a-f]{8})-[0-9a-f]{8}", folder.name)
    if match is None:
        return False
    pid, tag = int(match[1]), match[2]
    if tag != host_tag():
        last_s = max(stat.st_mtime for stat in (folder.lstat(), *stats(folder)))
        return time.time() - last_s > _ABANDONED_S
    return folder.name not in writing if pid == os.getpid() else not psutil.pid_exists(pid)
