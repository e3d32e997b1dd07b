"""Images in tar files, as WebDataset lays them out: read in place, never extracted, without torch.

A sample is a run of neighbouring members with one key, the path up to the first dot of the file's name:
``cats/0001.jpg`` and ``cats/0001.cls`` belong together. A tar file is read through once, for the names and offsets of
its images; after that any image is one seek away, so the order is as free and exact as in a folder (the webdataset
package streams and shuffles through a buffer, which cannot resume exactly). Compressed tar files have no such offsets.
"""

import contextlib
import glob
import hashlib
import itertools
import json
import os
import posixpath
import re
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from heedmap.data.cache.folder import file_state, write_shared
from heedmap.data.decoding import IMAGE_SUFFIXES, PARTS, natural
from heedmap.errors import DataError, ImageError, nearest

CLASSES = "classes.txt"  # one class name a line; the line's number, from 0, is what a .cls member holds
SUFFIX = ".tar"
MEMBER_BYTES = 256 * 1024**2  # an image in a shard that is larger is not read
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_MOST_NAMES = 100_000
_LABEL_KINDS = ("cls", "json", "txt")  # the first of them counts
_LABEL_NAMES = ("label", "cls", "class")
_LABEL_BYTES = 1024**2
_HEADER_BYTES = 16 * 1024**2
_BLOCK = 512
_VERSION = 3
_FIELDS = ("names", "offsets", "sizes", "labels", "trouble", "skipped")


@dataclass(frozen=True)
class ShardIndex:
    """Where the N images of a tar file lie: their paths within it, offsets and lengths in bytes.

    Attributes:
        labels: for each image the content of its ``.cls``, ``.json`` or ``.txt``, or else the folder of its key, or
            None.
        trouble: why the rest of the shard cannot be read; empty where all of it was.
        skipped: number of members that belong to no image.
    """

    path: Path
    names: tuple[str, ...]
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    labels: tuple[str | None, ...]
    trouble: str
    skipped: int

    def __len__(self) -> int:
        return len(self.names)


def split_key(name: str) -> tuple[str, str]:
    """Return key and extension of a member: ``a.b/c.seg.png`` is ``a.b/c`` and ``seg.png``."""
    folder, _, file = name.rpartition("/")
    stem, _, kind = file.partition(".")
    return (f"{folder}/{stem}" if folder else stem), kind


def index_shard(path: Path, cache: Path | None = None) -> ShardIndex:
    """Read the headers of a plain tar file; the folder ``cache`` keeps the index until the shard changes.

    Raises:
        DataError: no such file, one that is compressed or no tar file, or one with a member that a shard must not have
            (a link, a device, a sparse file, an absolute path, or one with ``..``).
    """
    try:
        status = path.stat()
        name = hashlib.blake2b(os.fsencode(path.absolute()), digest_size=12).hexdigest()
        record = None if cache is None else cache / f"{name}.json"
        fingerprint = [_VERSION, str(path.absolute()), file_state(status)]
        if record is not None and (index := _read_index(record, fingerprint, path)) is not None:
            return index
        with path.open("rb") as file:
            index = _index(path, file, status.st_size)
    except OSError as error:
        raise DataError(f"Shard {path} cannot be read: {error.strerror or error}.") from None
    if record is not None:
        content = {"fingerprint": fingerprint, **{name: getattr(index, name) for name in _FIELDS}}
        with contextlib.suppress(OSError):  # a full or read-only disk costs the next start some time, and nothing else
            record.parent.mkdir(parents=True, exist_ok=True)
            write_shared(record, json.dumps(content).encode("utf-8", "surrogateescape"))
    return index


def _read_index(record: Path, fingerprint: list[Any], path: Path) -> ShardIndex | None:
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # gone, or damaged: the shard is indexed again
        content = json.loads(record.read_text(encoding="utf-8"))
        names, offsets, sizes, labels = (tuple(content[name]) for name in _FIELDS[:4])
        if content["fingerprint"] == fingerprint and len(names) == len(offsets) == len(sizes) == len(labels):
            return ShardIndex(path, names, offsets, sizes, labels, str(content["trouble"]), int(content["skipped"]))
    return None


def read_member(path: Path, offset: int, size: int, name: str) -> bytes:
    """Return the bytes of a member; ``ImageError`` where it is too large, or the shard is gone or too short."""
    if size > MEMBER_BYTES:
        raise ImageError(f"{name}: it has {size:,} bytes, above the guard of {MEMBER_BYTES // 1024**2} MiB")
    try:
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read(size)
    except OSError as error:
        raise ImageError(f"{name}: its shard {path} cannot be read ({error.strerror or error})") from None
    if len(data) < size:
        raise ImageError(f"{name}: its shard {path} ends before it does")
    return data


def listed_classes(*folders: Path) -> tuple[Path, tuple[str, ...]] | None:
    """Return the first ``classes.txt`` in these folders, and the names in it."""
    for place in (folder / CLASSES for folder in folders):
        if place.is_file():
            lines = map(str.strip, place.read_text(encoding="utf-8").splitlines())
            return place, tuple(filter(None, lines))
    return None


def is_numbered(words: set[str]) -> bool:
    """Return whether all labels are numbers; unless they are names of classes too, they are indices of classes."""
    return all(word.isascii() and word.isdigit() for word in words)


def label_names(index: ShardIndex) -> tuple[str | None, ...]:
    """Return the labels by name: numbers are lines of the ``classes.txt`` beside the shard or above it."""
    words = {word for word in index.labels if word is not None}
    listed = listed_classes(index.path.parent, index.path.parent.parent)
    if listed is None or not is_numbered(words) or words <= set(listed[1]):
        return index.labels
    names = dict(enumerate(listed[1]))
    return tuple(None if word is None else names.get(int(word)) for word in index.labels)


Member = tuple[str, tarfile.TarInfo]


class _Bounded:
    """A file of which nothing large is read at once: a header may claim any length."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, count: int = -1) -> bytes:
        if not 0 <= count <= _HEADER_BYTES:
            raise tarfile.ReadError(f"a header claims {count:,} bytes")
        return self._file.read(count)


def _index(path: Path, file: IO[bytes], length: int) -> ShardIndex:
    images: list[Member] = []
    labels: list[str | None] = []
    trouble, skipped, end = "", 0, 0
    try:
        with tarfile.open(fileobj=cast(IO[bytes], _Bounded(file)), mode="r:") as tar:
            named = ((name, member) for member in tar if (name := _checked_name(path, member)) is not None)
            for _, sample in itertools.groupby(named, key=lambda member: split_key(member[0])[0]):
                members = list(sample)
                if any(member.offset_data + member.size > length for _, member in members):
                    raise tarfile.ReadError("unexpected end of data")
                end = max(member.offset_data + -(-member.size // _BLOCK) * _BLOCK for _, member in members)
                of_sample = _images_among(members)
                label = _label(file, members) if of_sample else None
                skipped += sum(split_key(name)[1] not in _LABEL_KINDS for name, _ in members) - len(of_sample)
                images += of_sample
                labels += [label] * len(of_sample)
        file.seek(end)
        if any(file.read(_BLOCK)):  # tarfile takes a damaged header for the end; a true end is zeros, or nothing
            trouble = f"the shard is damaged after byte {end:,}"
    except (tarfile.TarError, ValueError, OverflowError) as error:
        if end == 0:
            why = str(error) or "damaged"
            raise DataError(
                f"{path} is not a plain tar file ({why}); unpack a compressed one (gunzip, zstd -d)."
            ) from None
        trouble = f"the shard is damaged after byte {end:,} ({error})"
    columns = ((name, member.offset_data, member.size) for name, member in images)
    names, offsets, sizes = zip(*columns, strict=True) if images else ((), (), ())
    return ShardIndex(path, names, offsets, sizes, tuple(labels), trouble, skipped)


def _checked_name(path: Path, member: tarfile.TarInfo) -> str | None:
    """Return the member's path without ``./``; None for folders and hidden files.

    Nothing is ever written under these names; still, links and paths that lead out are refused, because a shard that
    has them was not made of images, and what reads it next may be less careful.
    """
    name = member.name
    kind = "a link" if member.issym() or member.islnk() else "a sparse file" if member.issparse() else "a device"
    if not (member.isdir() or (member.isreg() and not member.issparse())):
        raise DataError(f"Shard {path}: member {name!r} is {kind}; pack the images themselves (heedmap pack).")
    if name.startswith(("/", "\\")) or ".." in name.replace("\\", "/").split("/") or "\0" in name:
        raise DataError(f"Shard {path}: member {name!r} has a path that leads out of the shard; pack it again.")
    name = posixpath.normpath(name)
    hidden = any(part.startswith(".") or part.lower() == "__macosx" for part in name.split("/"))
    return None if member.isdir() or hidden else name


def _images_among(members: list[Member]) -> list[Member]:
    """Return the images of a sample. Beside ``x.jpg``, ``x.seg.png`` is no image of its own; alone it is."""
    plain = [member for member in members if f".{split_key(member[0])[1].lower()}" in IMAGE_SUFFIXES]
    return plain or [member for member in members if posixpath.splitext(member[0])[1].lower() in IMAGE_SUFFIXES]


def _label(file: IO[bytes], members: list[Member]) -> str | None:
    """Return the label in the sample's own members, or else the folder of its key."""
    kinds = {split_key(name)[1].lower(): member for name, member in reversed(members)}
    for kind in _LABEL_KINDS:
        if kind in kinds and kinds[kind].size <= _LABEL_BYTES:
            position = file.tell()
            file.seek(kinds[kind].offset_data)
            text = file.read(kinds[kind].size).decode("utf-8", "replace").strip()
            file.seek(position)
            if label := _json_label(text) if kind == "json" else text:
                return label
    return posixpath.basename(posixpath.dirname(members[0][0])) or None


def _json_label(text: str) -> str | None:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return None
    values = [content.get(name) for name in _LABEL_NAMES] if isinstance(content, dict) else [content]
    return next((str(value) for value in values if type(value) in (int, str)), None)  # True is no label


def expand_braces(pattern: str) -> list[str]:
    """Return the names that ``{000..127}`` and ``{a,b}`` stand for; ``DataError`` from a hundred thousand on."""
    braces = _BRACES.search(pattern)
    if braces is None:
        return [pattern]
    before, content, after = pattern[: braces.start()], braces[1], pattern[braces.end() :]
    too_many = DataError(f"{pattern} stands for more than {_MOST_NAMES:,} names; take fewer.")
    if span := _RANGE.fullmatch(content):
        low, high = int(span[1]), int(span[2])
        if abs(high - low) >= _MOST_NAMES:
            raise too_many
        step = 1 if high >= low else -1
        choices = [f"{number:0{len(span[1])}d}" for number in range(low, high + step, step)]
    elif "," in content:
        choices = content.split(",")
    else:  # as in a shell: braces around a single word are letters like any others
        return [f"{before}{braces[0]}{rest}" for rest in expand_braces(after)]
    names: list[str] = []
    for choice in choices:
        names += expand_braces(before + choice + after)
        if len(names) > _MOST_NAMES:
            raise too_many
    return names


def expand_shards(pattern: str | Path) -> list[Path]:
    """Return the tar files of a folder, a name, or a pattern with ``*`` or braces; ``DataError`` without one."""
    text = str(Path(pattern).expanduser())
    shards: list[Path] = []
    if Path(text).is_dir():
        shards = sorted(Path(text).glob(f"*{SUFFIX}"), key=lambda path: natural(path.name))
        if not shards:
            raise DataError(f"Folder {text} holds no shards (*{SUFFIX}).")
        return shards
    for name in [text] if Path(text).is_file() else expand_braces(text):
        if Path(name).is_file():
            shards.append(Path(name))
        elif fitting := sorted(glob.glob(name, recursive=True), key=natural):  # noqa: PTH207  Path.glob takes no absolute pattern
            shards += map(Path, fitting)
        else:
            hint = nearest(Path(name).name, [path.name for path in Path(name).parent.glob(f"*{SUFFIX}")], cutoff=0.7)
            raise DataError(f"There is no shard {name}.{hint}")
    return list(dict.fromkeys(shards))


def is_sharded(data: str | Path) -> bool:
    """Return whether the data is a tar file, a pattern of them, or a folder that holds them and no class folders."""
    text = str(data)
    path = Path(text).expanduser()
    if not path.is_dir():
        return text.endswith(SUFFIX)
    for folder in [child for child in path.iterdir() if child.is_dir() and child.name.lower() in PARTS] or (path,):
        # A tar file left beside class folders is what they were unpacked from.
        has_folders = any(child.is_dir() and not child.name.startswith(".") for child in folder.iterdir())
        if not has_folders and any(folder.glob(f"*{SUFFIX}")):
            return True
    return False
