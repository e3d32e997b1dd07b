"""Where things are kept for the next run, and how several processes keep them together without harm."""

from __future__ import annotations

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

__all__ = ["cache_folder", "digest", "partial_of", "remove_partials", "state", "write_kept"]

DIGEST = 16
"""Bytes of a digest."""

_PARTIAL = ".partial"
_STALE = 24 * 3600.0  # seconds, after which nobody writes on a file any more


def cache_folder(choice: str | None = None) -> Path | None:
    """Return the folder to keep things in.

    Args:
        choice: a folder, ``off``, or None: what ``HEEDMAP_CACHE`` names (one of these two), or else the user's cache
            folder; where that cannot be written, one of the user's own in the system's folder for temporary files.

    Returns:
        The folder, made; None where nothing is to be kept.

    Raises:
        DataError: a folder that was named cannot be made.
    """
    choice = choice or os.environ.get("HEEDMAP_CACHE") or None
    if choice == "off":
        return None
    if choice is not None:
        folder = Path(choice).expanduser().absolute()
        if not _made(folder):
            raise DataError(f"The cache folder {folder} cannot be written; name another one with --cache, or 'off'.")
        return folder
    if _made(home := _home()):
        return home
    own = Path(tempfile.gettempdir()) / f"heedmap-{_user()}"
    # In a folder that all may write to, someone else may have been there first.
    return own if _made(own) and _is_ours(own) else None


def _home() -> Path:
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


def _made(folder: Path) -> bool:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


def _is_ours(folder: Path) -> bool:
    return not hasattr(os, "getuid") or folder.stat().st_uid == os.getuid()


# ---- what a file is known by


def state(status: os.stat_result) -> str:
    """Return what changes when a file does: its length, its times of change, and its number on the disk.

    The time of change of the content is not enough: archives and synchronisation set it, so that many files share one,
    and a file renamed into the place of another brings its own along. Renaming and overwriting move the time of change
    of the file's entry (``st_ctime``; on Windows, where this is the time of making, and on file systems without one,
    the number tells files apart). A copied folder has other numbers and is decoded anew, as is one on a mount that
    numbers its files anew each time (sshfs).
    """
    return f"{status.st_size}\0{status.st_mtime_ns}\0{status.st_ctime_ns}\0{status.st_ino}"


def digest(content: bytes | memoryview, size: int = DIGEST) -> bytes:
    """Return the BLAKE2b digest of ``size`` bytes."""
    return hashlib.blake2b(content, digest_size=size).digest()


# ---- files of several processes


def partial_of(target: Path, host: str, process: int) -> Path:
    """Return the name under which a process writes a file before it is renamed into its place."""
    return target.with_name(f".{target.name}.{digest(host.encode(), 4).hex()}.{process}{_PARTIAL}")


def write_kept(target: Path, *contents: bytes | memoryview) -> None:
    """Write a file whole, although another process may be writing the same one.

    Raises:
        OSError: it cannot be written; nothing is left of it.
    """
    partial = partial_of(target, platform.node(), os.getpid())
    try:
        with partial.open("wb") as file:
            for content in contents:
                file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def remove_partials(folder: Path) -> None:
    """Remove what killed processes left half written here: those of this machine, and of others after a day."""
    here = digest(platform.node().encode(), 4).hex()
    for path in folder.glob(f".*{_PARTIAL}"):
        host, _, process = path.name.removesuffix(_PARTIAL).rpartition(".")
        is_dead = host.endswith(f".{here}") and process.isdigit() and not psutil.pid_exists(int(process))
        with contextlib.suppress(OSError):  # another process has just removed it, or finished it
            if is_dead or time.time() - path.stat().st_mtime > _STALE:
                path.unlink()
