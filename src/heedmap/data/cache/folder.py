"""The cache folder, and how several processes share it without harm."""

import contextlib
import getpass
import hashlib
import os
import platform
import sys
import tempfile
import time
from pathlib import Path

import psutil

from heedmap.errors import DataError

DIGEST = 16  # bytes of a digest
_PARTIAL = ".partial"
_STALE = 24 * 3600.0  # seconds, after which nobody writes on a file any more


def cache_folder(choice: str | None = None) -> Path | None:
    """Make the cache folder and return it; None where nothing is to be cached.

    Args:
        choice: a folder, ``off``, or None: what ``HEEDMAP_CACHE`` names (one of these two), or else the user's cache
            folder; where that cannot be written, one of the user's own in the system's folder for temporary files.

    Raises:
        DataError: a folder that was named cannot be made.
    """
    choice = choice or os.environ.get("HEEDMAP_CACHE") or None
    if choice == "off":
        return None
    if choice is not None:
        folder = Path(choice).expanduser().absolute()
        if not _is_writable(folder):
            raise DataError(f"The cache folder {folder} cannot be written; name another one with --cache, or 'off'.")
        return folder
    if _is_writable(home := _user_cache()):
        return home
    own = Path(tempfile.gettempdir()) / f"heedmap-{_user()}"
    # In a folder that all may write to, someone else may have been there first.
    is_ours = _is_writable(own) and (not hasattr(os, "getuid") or own.stat().st_uid == os.getuid())
    return own if is_ours else None


def _user_cache() -> Path:
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "heedmap"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "heedmap" / "cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "heedmap"


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user may have no name
        return str(os.getuid()) if hasattr(os, "getuid") else "user"


def _is_writable(folder: Path) -> bool:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


def file_state(status: os.stat_result) -> str:
    """Return what changes when a file does: its length, its times of change, and its inode number.

    The modification time alone is not enough: archives and synchronisation set it, and a file renamed onto another
    brings its own along. Renaming and overwriting move ``st_ctime``; where this is the creation time (Windows), the
    inode number distinguishes files. A copied folder has other numbers, and its images are decoded again.
    """
    return f"{status.st_size}\0{status.st_mtime_ns}\0{status.st_ctime_ns}\0{status.st_ino}"


def digest(content: bytes | memoryview, size: int = DIGEST) -> bytes:
    """Return the BLAKE2b digest of ``size`` bytes."""
    return hashlib.blake2b(content, digest_size=size).digest()


def partial_of(target: Path, host: str, process: int) -> Path:
    """Return the name under which a process writes a file before it renames it to ``target``."""
    return target.with_name(f".{target.name}.{digest(host.encode(), 4).hex()}.{process}{_PARTIAL}")


def write_shared(target: Path, content: bytes | memoryview) -> None:
    """Write a whole file although another process may be writing the same one; after ``OSError`` nothing is left."""
    partial = partial_of(target, platform.node(), os.getpid())
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def remove_partials(folder: Path) -> None:
    """Remove what killed processes left half written: those of this machine, and of others after a day."""
    this_host = digest(platform.node().encode(), 4).hex()
    for path in folder.glob(f".*{_PARTIAL}"):
        host, _, process = path.name.removesuffix(_PARTIAL).rpartition(".")
        is_dead = host.endswith(f".{this_host}") and process.isdigit() and not psutil.pid_exists(int(process))
        with contextlib.suppress(OSError):  # another process has just removed or finished it
            if is_dead or time.time() - path.stat().st_mtime > _STALE:
                path.unlink()
