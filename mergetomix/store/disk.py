"""What the store asks of the disk: time stamps, sizes, flushes, and what to say when it is full."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from stat import S_ISREG

from mergetomix.errors import StoreError

# SQLite's shared memory is not shared between hosts, and SQLite does not notice.
_NETWORK = re.compile(r"nfs|cifs|smb|fuse|lustre|gpfs|beegfs|ceph|afs|9p|glusterfs|pvfs")


def stamp(path: Path) -> tuple[int, int, int]:
    """Returns `(num_bytes, mtime_ns, ctime_ns)` of a file."""
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def stats(folder: Path, but: str = "") -> Iterator[os.stat_result]:
    """Yields what the system knows of every file and folder below a folder, but for one name.

    What another process removes meanwhile is left out.
    """
    for root, folders, names in os.walk(folder):
        for name in (*folders, *names):
            with suppress(OSError):
                if name != but:
                    yield Path(root, name).lstat()


def size_bytes(folder: Path, but: str = "") -> int:
    """Returns how much the files below a folder hold, but for those of one name."""
    return sum(stat.st_size for stat in stats(folder, but) if S_ISREG(stat.st_mode))


def settle(folder: Path) -> None:
    """Waits until a folder, and every file and folder below it, is on the disk.

    Files get the permissions that the user's umask leaves: safetensors writes for the owner alone.
    """
    mode = 0o666 & ~_umask()
    for root, _, names in os.walk(folder, topdown=False):
        for name in names:
            file = Path(root, name)
            if not file.is_file():
                continue
            if not file.is_symlink() and file.stat().st_mode & 0o777 == 0o600:
                file.chmod(mode)
            fsync(file)
        fsync(Path(root))


def _umask() -> int:
    # the system tells it to who sets it alone
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def fsync(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def is_no_space(error: BaseException | None) -> bool:
    """Returns whether an error, or one that it came from, says that the disk or quota is full."""
    # Libraries wrap it: safetensors raises an error of its own that only quotes the system's words.
    # A file too large for its file system or for this process's limit is no other thing.
    codes = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    words = tuple(map(os.strerror, codes))
    for _ in range(8):
        if error is None:
            return False
        if getattr(error, "errno", None) in codes or any(each in str(error) for each in words):
            return True
        error = error.__cause__ or error.__context__
    return False


def no_space(path: Path, free_bytes: int) -> StoreError:
    """Returns what the user hears when the disk is full."""
    hint = "make space and run again; what was done before is in the store"
    return StoreError(f"disk full while writing {path}: {free_bytes} bytes are free", hint=hint)


def is_on_network(path: Path) -> bool:
    """Returns whether a folder lies on a file system that other hosts may share.

    It is False if the system does not say.
    """
    try:
        lines = Path("/proc/self/mounts").read_text(errors="replace").splitlines()
    except OSError:
        return False
    full, best, kind = Path(os.path.realpath(path)), "", ""
    for _, point, found, *_ in map(str.split, lines):
        # If two mounts have one place, the later hides the earlier.
        if full.is_relative_to(point) and len(point) >= len(best):
            best, kind = point, found
    return _NETWORK.match(kind) is not None
