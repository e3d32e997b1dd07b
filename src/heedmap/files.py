"""Files written atomically, locks, and text that terminals and tables can take."""

import contextlib
import errno
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, overload

import yaml

from heedmap.errors import RunError


def refuse_pickle(path: Path) -> None:
    """Raise RunError where a file of weights is missing, or a pickle (bare, or in PyTorch's zip file)."""
    try:
        with path.open("rb") as content:
            start = content.read(9)
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}.") from None
    # A safetensors file starts with the length of its header in eight bytes, of any value, and then the header's brace.
    if start[8:] != b"{" and (start[:1] == b"\x80" or start[:4] == b"PK\x03\x04"):
        raise RunError(f"{path} is a pickle, which can run code when loaded; heedmap reads safetensors only.")


def as_utf8(text: str) -> bytes:
    r"""Encode a text. Bytes of a file's name that are no characters become ``\udcff``, which JSON reads back."""
    return text.encode("utf-8", "backslashreplace")


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[int | None]:
    """Lock a folder for this process and those that inherit the lock; yield it, or None where the system has none.

    RunError where another process has locked the folder.
    """
    if os.name != "posix":
        yield None
        return
    import fcntl

    with disk(folder):
        lock = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(f"{folder} is in use by another process; wait for its end, or stop it.") from None
        except OSError:  # some network drives cannot lock folders
            pass
        yield lock
    finally:
        os.close(lock)


def write_whole(target: Path, content: bytes) -> None:
    """Write a temporary file, flush it to the disk, and rename it to the target."""
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def disk(path: Path) -> Iterator[None]:
    """Turn errors of the disk, such as a full one, into a RunError of one line."""
    space, other = "free some space and start again, a training with --resume", "name another --out"
    reasons = {
        errno.ENOSPC: f"the disk is full; {space}",
        errno.EDQUOT: f"the disk quota is used up; {space}",
        **dict.fromkeys((errno.EACCES, errno.EPERM), f"no permission to write there; {other}"),
        errno.EROFS: f"the disk is read-only; {other}",
        errno.ENAMETOOLONG: "the name is too long; give a shorter one",
        errno.ENOTDIR: f"a part of the path is a file, not a folder; {other}",
    }
    try:
        yield
    except OSError as error:
        raise RunError(f"{path}: {reasons.get(error.errno or 0, error.strerror or str(error))}.") from None


def read_mapping(path: Path) -> dict[str, Any]:
    """Read a YAML file of ``name: value`` lines; RunError where it is missing or damaged."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise RunError(f"{path} is damaged: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise RunError(f"{path} is damaged: it holds no 'name: value' lines.")
    return content


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def finite(value: Any) -> Any:
    """Return the value with lists for tuples and None for numbers that are not finite, as JSON and YAML can hold it."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not -1e308 < value < 1e308 else value


def what_file(path: Path) -> str:
    """Return what a file in place of a run is, and which command takes it: the end of a sentence."""
    kinds = {
        ".onnx": "an exported file, which `heedmap visualize` and `heedmap serve` take; name the run's folder here.",
        ".pt2": "a program for torch.export.load, which no command takes; name a run's folder.",
    }
    return kinds.get(path.suffix.lower(), "a file, and neither a run's folder nor an exported .onnx file.")


@overload
def printable(text: str) -> str: ...


@overload
def printable(text: None) -> None: ...


def printable(text: str | None) -> str | None:
    r"""Return the text as UTF-8 can hold it; bytes of a name that are no characters become ``\udcff``, as in JSON."""
    return None if text is None else text.encode("utf-8", "backslashreplace").decode("utf-8")
