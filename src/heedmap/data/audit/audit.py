"""What is wrong with a data set, before it is trained on: duplicates, leaks, odd files, lopsided classes.

A test image that is in train too is answered from memory, and an accuracy made of such answers is not one.
"""

from __future__ import annotations

import io
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath
from typing import Literal, NamedTuple, TypeVar

import numpy as np
from PIL import Image

from heedmap.data.audit.near_duplicates import SIDE, NearDuplicate, Thumbnail, find_near_duplicates, thumbnail
from heedmap.data.cache.folder import digest as digest_of
from heedmap.data.dataset import FileDataset, ImageDataset, Splits, TensorDataset
from heedmap.data.decoding import read_image
from heedmap.errors import DataError, ImageError, nearest
from heedmap.system import cores
from heedmap.types import Audit, Finding

__all__ = ["audit", "leakage_flag"]

DEPTHS = ("cheap", "full")
LOPSIDED = 3.0  # largest class over smallest, from which it is a finding
RARE = 0.1  # a form (size, grey) that fewer than this share of the images have is odd
_BLOCK = 4096  # images handed to the threads at a time
LONG = 3.0  # a longer image than 3 : 1 loses two thirds to the square crop
SUFFIXES = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "MPO": (".jpg", ".jpeg", ".mpo"),
    "PNG": (".png", ".apng"),
    "BMP": (".bmp", ".dib"),
    "GIF": (".gif",),
    "WEBP": (".webp",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
}

_Out = TypeVar("_Out")


class _Entry(NamedTuple):
    split: str
    images: ImageDataset
    place: int

    @property
    def name(self) -> str:
        return self.images.names[self.place]

    @property
    def label(self) -> int:
        return int(self.images.labels[self.place])


class _Look(NamedTuple):
    """What one decoding of an image tells: its size as stored, its format (None in memory), its thumbnail."""

    width: int
    height: int
    format: str | None
    thumbnail: Thumbnail


def audit(
    splits: Splits, depth: Literal["cheap", "full"] = "cheap", digests: Mapping[str, Sequence[bytes]] | None = None
) -> Audit:
    """Look a data set over.

    ``cheap`` reads no more than it must: files of equal length are compared by their bytes, or all by their digests
    where these are given, classes are counted, and the unreadable files that are known already are repeated. ``full``
    decodes every image at a small size and finds near duplicate within and across the parts
    (:mod:`heedmap.data.audit.near_duplicates`; mirror images too where the set is flippable), same pixels in different
    files, unreadable files, and odd ones: another size than nine of ten, grey among colour, longer than 3 : 1, one
    colour only, an extension that lies about the format.

    Args:
        splits: the data set.
        depth: ``cheap`` or ``full``.
        digests: part -> digest of each image's file, as :class:`heedmap.data.cache.verified.Checked` has them, so that
            no file is read for its bytes; for all parts whose images lie in files, or None.

    Returns:
        The audit. Twins are one finding for each group; where their classes differ there is a ``conflicting-labels``
        finding beside it. ``leaked`` counts the images of ``test`` that have a duplicate in ``train``.

    Raises:
        DataError: for another depth.
    """
    if depth not in DEPTHS:
        raise DataError(f"An audit is 'cheap' or 'full', not {depth!r}.{nearest(str(depth), DEPTHS)}")
    begun = time.perf_counter()
    entries = [_Entry(name, part, place) for name, part in splits.parts.items() for place in range(len(part))]
    findings = [Finding("unreadable", (), (path,), reason) for path, reason in splits.unreadable]
    known = [digest for name, part in splits.parts.items() for digest in (digests or {}).get(name, [b""] * len(part))]
    copies, broken = _same_bytes(entries, known)
    near: list[NearDuplicate] = []
    if depth == "full":
        looks, undecodable = _look_over(entries)
        broken = {**broken, **undecodable}
        findings += _odd(entries, looks)
        near = _near(copies, looks, splits.flippable)
        copies, near = _equal_pixels_joined(entries, copies, near)
    findings += [Finding("unreadable", (entries[i].split,), (entries[i].name,), why) for i, why in broken.items()]
    findings += _duplicate_findings(entries, splits.classes, copies, near)
    per_class = {name: _counts(part, splits.classes) for name, part in splits.parts.items()}
    findings += _lopsided(per_class["train"])
    images = {name: len(part) for name, part in splits.parts.items()}
    leaked = _leaked(entries, copies, near)
    return Audit(images, per_class, tuple(findings), leaked, time.perf_counter() - begun, depth)


def leakage_flag(accuracy: float, audit: Audit, test_count: int) -> str | None:
    """Say so where leaked test images could explain an accuracy.

    Two cases are flagged: more than 1 % of the test images have a duplicate in train; or the accuracy is above 96 % and
    the leaked images are at least a quarter as many as the wrong answers, so that what sets this accuracy apart from
    a lower one may be memory. One leaked image among thousands explains nothing and is left to the audit's findings.
    The bound in the sentence supposes that each leaked image was answered rightly:
    (right - leaked) / (test_count - leaked).

    Args:
        accuracy: top-1 share on the test part, 0 to 1.
        audit: of the same data set. After a cheap audit only byte-identical duplicates are known; the sentence says so.
        test_count: number of images that the accuracy was measured on.

    Returns:
        One sentence, or None.

    Raises:
        ValueError: accuracy outside 0 to 1, or no test images.
    """
    if not 0 <= accuracy <= 1 or test_count < 1:
        raise ValueError(f"accuracy must be in 0..1 of at least one image, not {accuracy} of {test_count}.")
    leaked = min(audit.leaked, test_count)
    right = accuracy * test_count
    many = leaked > 0.01 * test_count
    telling = accuracy > 0.96 and leaked >= max(1.0, (test_count - right) / 4)
    if not (many or telling):
        return None
    clean = test_count - leaked
    bound = (
        f"on the other {clean:,} the accuracy may be as low as {max(0.0, (right - leaked) / clean):.1%}"
        if clean
        else "there is no test image that was not trained on"
    )
    kind = "a byte-identical duplicate" if audit.depth == "cheap" else "a duplicate"
    share = f"{leaked:,} of {test_count:,} test images ({leaked / test_count:.1%})"
    return f"Leakage: {share} have {kind} in train; {bound}."


# ---- duplicates


def _same_bytes(entries: Sequence[_Entry], known: Sequence[bytes]) -> tuple[list[list[int]], dict[int, str]]:
    """Group entries whose bytes are equal (every entry is in one group), and name those that cannot be read.

    Where the digest of the bytes is not ``known`` (empty), only entries of a length that others have too are read.
    """
    groups: dict[object, list[int]] = defaultdict(list)
    broken: dict[int, str] = {}
    lengths: dict[object, list[int]] = defaultdict(list)
    for place, (entry, digest) in enumerate(zip(entries, known, strict=True)):
        try:
            if digest:
                groups[digest].append(place)
            elif length := _length(entry):
                lengths[length].append(place)
            else:
                broken[place] = "the file is empty (0 bytes)"
        except OSError as error:
            broken[place] = _why(error)
    groups |= {places[0]: places for places in lengths.values() if len(places) == 1}
    alike = [(place, length) for length, places in lengths.items() if len(places) > 1 for place in places]
    found = _in_threads(_digest, [entries[place] for place, _ in alike])
    for (place, size), content in zip(alike, found, strict=True):
        if isinstance(content, str):
            broken[place] = content
        else:
            groups[(size, content)].append(place)
    return sorted(groups.values()), broken


def _in_threads(work: Callable[[_Entry], _Out], items: Sequence[_Entry]) -> Iterator[_Out]:
    """What ``work`` makes of each item, in order, on all cores; a million of them do not wait in line at once."""
    with ThreadPoolExecutor(cores()) as pool:
        for start in range(0, len(items), _BLOCK):
            yield from pool.map(work, items[start : start + _BLOCK])


def _why(error: OSError) -> str:
    return f"it cannot be read ({error.strerror or error})"


def _length(entry: _Entry) -> int | tuple[int, ...]:
    if isinstance(entry.images, FileDataset):
        return entry.images.length(entry.place)
    return tuple(entry.images.images.shape[1:]) if isinstance(entry.images, TensorDataset) else (3, 64, 64)


def _digest(entry: _Entry) -> bytes | str:
    """A digest of an image's bytes, or why they cannot be read."""
    images = entry.images
    if isinstance(images, TensorDataset):
        return digest_of(images.images[images.indices[entry.place]].contiguous().numpy().data)
    if not isinstance(images, FileDataset):
        return digest_of(images.load(entry.place, 64).contiguous().numpy().data)
    try:
        return digest_of(images.data(entry.place))
    except OSError as error:
        return _why(error)
    except ImageError as error:
        return str(error).partition(": ")[2]


def _near(copies: list[list[int]], looks: dict[int, _Look], flippable: bool) -> list[NearDuplicate]:
    """Near duplicates among the images that could be decoded, one for each group of copies, as entry indices."""
    chosen = [group[0] for group in copies if group[0] in looks]
    duplicates = find_near_duplicates([looks[place].thumbnail for place in chosen], mirrored=flippable)
    return [
        duplicate._replace(first=chosen[duplicate.first], second=chosen[duplicate.second]) for duplicate in duplicates
    ]


def _equal_pixels_joined(
    entries: Sequence[_Entry], copies: list[list[int]], near: list[NearDuplicate]
) -> tuple[list[list[int]], list[NearDuplicate]]:
    """Near duplicates that are equal pixel for pixel join the copies; the others stay near."""
    equal: list[NearDuplicate] = []
    left: list[NearDuplicate] = []
    for duplicate in near:
        same = (
            duplicate.likeness > 0.98
            and not duplicate.mirrored
            and _equal_pixels(entries[duplicate.first], entries[duplicate.second])
        )
        (equal if same else left).append(duplicate)
    owner = {place: number for number, members in enumerate(copies) for place in members}
    joined = _components(range(len(copies)), [(owner[duplicate.first], owner[duplicate.second]) for duplicate in equal])
    groups = [[place for number in numbers for place in copies[number]] for numbers in joined]
    return groups, left


def _components(nodes: Iterable[int], pairs: Iterable[tuple[int, int]]) -> list[list[int]]:
    """The connected groups of a graph (union-find)."""
    parent = {node: node for node in nodes}

    def root(node: int) -> int:
        while parent[node] != node:
            parent[node] = node = parent[parent[node]]
        return node

    for one, other in pairs:
        parent[root(other)] = root(one)
    groups: dict[int, list[int]] = defaultdict(list)
    for node in parent:
        groups[root(node)].append(node)
    return list(groups.values())


def _equal_pixels(first: _Entry, second: _Entry) -> bool:
    return bool(np.array_equal(_pixels(first), _pixels(second)))


def _pixels(entry: _Entry) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    if isinstance(entry.images, FileDataset):
        return np.asarray(read_image(io.BytesIO(entry.images.data(entry.place))))
    return np.asarray(_in_memory(entry))


def _duplicate_findings(
    entries: Sequence[_Entry], classes: tuple[str, ...], copies: list[list[int]], near: list[NearDuplicate]
) -> Iterable[Finding]:
    """One finding for each group of copies and of near duplicate, and one more where their classes differ."""
    for group in copies:
        if len(group) > 1:
            yield from _group(entries, classes, group, "exact-duplicate", "the same image")
    owner = {place: group[0] for group in copies for place in group}
    pairs = [(owner[duplicate.first], owner[duplicate.second]) for duplicate in near]
    mirrored = {owner[duplicate.first] for duplicate in near if duplicate.mirrored}
    for group in _components(sorted({place for pair in pairs for place in pair}), pairs):
        if len(group) == 1:  # its duplicate became a copy by way of a third image
            continue
        word = "nearly the same image" + (", one of them mirrored" if mirrored & set(group) else "")
        yield from _group(entries, classes, group, "near-duplicate", word)


def _group(
    entries: Sequence[_Entry], classes: tuple[str, ...], group: list[int], kind: str, word: str
) -> Iterable[Finding]:
    members = [entries[place] for place in sorted(group)]
    splits = tuple(dict.fromkeys(entry.split for entry in members))
    paths = tuple(entry.name for entry in members)
    across = f" across {' and '.join(splits)}" if len(splits) > 1 else ""
    yield Finding(kind, splits, paths, f"{len(paths)} times {word}{across}")
    labels = tuple(dict.fromkeys(classes[entry.label] for entry in members))
    if len(labels) > 1:
        yield Finding("conflicting-labels", splits, paths, f"{word} under different classes: {', '.join(labels)}")


def _leaked(entries: Sequence[_Entry], copies: list[list[int]], near: list[NearDuplicate]) -> int:
    """Number of test entries with a copy, or a near duplicate of a copy, in train."""
    group = {place: members for members in copies for place in members}
    sources: dict[int, set[str]] = {id(members): {entries[place].split for place in members} for members in copies}
    own = {key: set(splits) for key, splits in sources.items()}
    for duplicate in near:
        one, other = id(group[duplicate.first]), id(group[duplicate.second])
        sources[one] |= own[other]
        sources[other] |= own[one]
    leaky = (members for members in copies if "train" in sources[id(members)])
    return sum(entries[place].split == "test" for members in leaky for place in members)


# ---- one look at each image


def _look_over(entries: Sequence[_Entry]) -> tuple[dict[int, _Look], dict[int, str]]:
    """Decode every image small, on all cores: place -> what it looks like, and place -> why it cannot be read."""
    looks: dict[int, _Look] = {}
    broken: dict[int, str] = {}
    for place, seen in enumerate(_in_threads(_look, entries)):
        if isinstance(seen, _Look):
            looks[place] = seen
        else:
            broken[place] = seen
    return looks, broken


def _look(entry: _Entry) -> _Look | str:
    if not isinstance(entry.images, FileDataset):
        image = _in_memory(entry)
        return _Look(*image.size, None, thumbnail(image))
    try:
        data = entry.images.data(entry.place)
        small = thumbnail(read_image(io.BytesIO(data), short_side=2 * SIDE))
    except OSError as error:
        return _why(error)
    except ImageError as error:
        return str(error).partition(": ")[2]
    with Image.open(io.BytesIO(data)) as opened:
        return _Look(*opened.size, opened.format, small)


def _in_memory(entry: _Entry) -> Image.Image:
    images = entry.images
    if isinstance(images, TensorDataset):
        pixels = images.images[images.indices[entry.place]]
    else:
        pixels = images.load(entry.place, 64)
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())


# ---- odd files and lopsided classes


def _odd(entries: Sequence[_Entry], looks: dict[int, _Look]) -> list[Finding]:
    """One finding for each kind of oddity, naming all the files."""
    checks: list[tuple[Callable[[int], bool], str]] = [
        (lambda place: _is_long(looks[place]), "longer than 3 : 1; the square crop loses most of it"),
        (lambda place: looks[place].thumbnail.is_plain, "of one colour only"),
        (lambda place: _lies(entries[place].name, looks[place]), "whose extension lies about the format"),
    ]
    if looks:
        (width, height), most = Counter((look.width, look.height) for look in looks.values()).most_common(1)[0]
        if most >= (1 - RARE) * len(looks):
            note = f"of another size than the {width}x{height} of the rest"
            checks.append((lambda place: (looks[place].width, looks[place].height) != (width, height), note))
        if sum(look.thumbnail.is_grey for look in looks.values()) <= RARE * len(looks):
            checks.append((lambda place: looks[place].thumbnail.is_grey, "(nearly) grey among images in colour"))
    found = [([entries[place] for place in looks if check(place)], note) for check, note in checks]
    return [_oddity(odd, note) for odd, note in found if odd]


def _oddity(odd: list[_Entry], note: str) -> Finding:
    splits = tuple(dict.fromkeys(entry.split for entry in odd))
    count = f"{len(odd):,} image" + ("s" if len(odd) > 1 else "")
    return Finding("odd", splits, tuple(entry.name for entry in odd), f"{count} {note}")


def _is_long(look: _Look) -> bool:
    return max(look.width, look.height) > LONG * min(look.width, look.height)


def _lies(name: str, look: _Look) -> bool:
    return look.format is not None and PurePosixPath(name).suffix.lower() not in SUFFIXES.get(look.format, ())


def _counts(part: ImageDataset, classes: tuple[str, ...]) -> dict[str, int]:
    counts = part.labels.bincount(minlength=len(classes)).tolist()
    return dict(zip(classes, counts, strict=True))


def _lopsided(counts: dict[str, int]) -> list[Finding]:
    """Train classes too unlike in number, in one finding."""
    largest, smallest = max(counts, key=lambda name: counts[name]), min(counts, key=lambda name: counts[name])
    if counts[largest] < LOPSIDED * max(counts[smallest], 1):
        return []
    note = f"class {largest!r} has {counts[largest]:,} training images, {smallest!r} only {counts[smallest]:,}"
    return [Finding("imbalance", ("train",), (), note)]
