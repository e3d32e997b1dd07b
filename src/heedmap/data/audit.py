"""What is wrong with a data set, before it is trained on: twins, leaks, odd files, lopsided classes.

A test picture that is in train too is answered from memory, and an accuracy made of such answers is not one.
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

from heedmap.data.decoding import read_picture
from heedmap.data.kept import digest as digest_of
from heedmap.data.pictures import FilePictures, Pictures, Splits, TensorPictures
from heedmap.data.twins import SIDE, Thumbnail, Twin, find_twins, thumbnail
from heedmap.errors import DataError, PictureError, nearest
from heedmap.machine import cores
from heedmap.records import Audit, Finding

__all__ = ["audit", "leakage_flag"]

DEPTHS = ("cheap", "full")
LOPSIDED = 3.0  # largest class over smallest, from which it is a finding
RARE = 0.1  # a form (size, grey) that fewer than this share of the pictures have is odd
_BLOCK = 4096  # pictures handed to the threads at a time
LONG = 3.0  # a longer picture than 3 : 1 loses two thirds to the square crop
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
    pictures: Pictures
    place: int

    @property
    def name(self) -> str:
        return self.pictures.names[self.place]

    @property
    def label(self) -> int:
        return int(self.pictures.labels[self.place])


class _Look(NamedTuple):
    """What one decoding of a picture tells: its size as stored, its format (None in memory), its thumbnail."""

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
    decodes every picture at a small size and finds near twins within and across the parts (:mod:`heedmap.data.twins`;
    mirror images too where the set is flippable), same pixels in different files, unreadable files, and odd ones:
    another size than nine of ten, grey among colour, longer than 3 : 1, one colour only, an extension that lies about
    the format.

    Args:
        splits: the data set.
        depth: ``cheap`` or ``full``.
        digests: part -> digest of each picture's file, as :class:`heedmap.data.checked.Checked` has them, so that no
            file is read for its bytes; for all parts whose pictures lie in files, or None.

    Returns:
        The audit. Twins are one finding for each group; where their classes differ there is a ``conflicting-labels``
        finding beside it. ``leaked`` counts the pictures of ``test`` that have a twin in ``train``.

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
    near: list[Twin] = []
    if depth == "full":
        looks, undecodable = _look_over(entries)
        broken = {**broken, **undecodable}
        findings += _odd(entries, looks)
        near = _near(copies, looks, splits.flippable)
        copies, near = _equal_pixels_joined(entries, copies, near)
    findings += [Finding("unreadable", (entries[i].split,), (entries[i].name,), why) for i, why in broken.items()]
    findings += _twin_findings(entries, splits.classes, copies, near)
    per_class = {name: _counts(part, splits.classes) for name, part in splits.parts.items()}
    findings += _lopsided(per_class["train"])
    pictures = {name: len(part) for name, part in splits.parts.items()}
    leaked = _leaked(entries, copies, near)
    return Audit(pictures, per_class, tuple(findings), leaked, time.perf_counter() - begun, depth)


def leakage_flag(accuracy: float, audit: Audit, test_count: int) -> str | None:
    """Say so where leaked test pictures could explain an accuracy.

    Two cases are flagged: more than 1 % of the test pictures have a twin in train; or the accuracy is above 96 % and
    the leaked pictures are at least a quarter as many as the wrong answers, so that what sets this accuracy apart from
    a lower one may be memory. One leaked picture among thousands explains nothing and is left to the audit's findings.
    The bound in the sentence supposes that each leaked picture was answered rightly:
    (right - leaked) / (test_count - leaked).

    Args:
        accuracy: top-1 share on the test part, 0 to 1.
        audit: of the same data set. After a cheap audit only byte-identical twins are known; the sentence says so.
        test_count: number of pictures that the accuracy was measured on.

    Returns:
        One sentence, or None.

    Raises:
        ValueError: accuracy outside 0 to 1, or no test pictures.
    """
    if not 0 <= accuracy <= 1 or test_count < 1:
        raise ValueError(f"accuracy must be in 0..1 of at least one picture, not {accuracy} of {test_count}.")
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
        else "there is no test picture that was not trained on"
    )
    kind = "a byte-identical twin" if audit.depth == "cheap" else "a twin"
    share = f"{leaked:,} of {test_count:,} test pictures ({leaked / test_count:.1%})"
    return f"Leakage: {share} have {kind} in train; {bound}."


# ---- twins


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
    if isinstance(entry.pictures, FilePictures):
        return entry.pictures.length(entry.place)
    return tuple(entry.pictures.images.shape[1:]) if isinstance(entry.pictures, TensorPictures) else (3, 64, 64)


def _digest(entry: _Entry) -> bytes | str:
    """A digest of a picture's bytes, or why they cannot be read."""
    pictures = entry.pictures
    if isinstance(pictures, TensorPictures):
        return digest_of(pictures.images[pictures.indices[entry.place]].contiguous().numpy().data)
    if not isinstance(pictures, FilePictures):
        return digest_of(pictures.load(entry.place, 64).contiguous().numpy().data)
    try:
        return digest_of(pictures.data(entry.place))
    except OSError as error:
        return _why(error)
    except PictureError as error:
        return str(error).partition(": ")[2]


def _near(copies: list[list[int]], looks: dict[int, _Look], flippable: bool) -> list[Twin]:
    """Near twins among the pictures that could be decoded, one for each group of copies, as places in the entries."""
    chosen = [group[0] for group in copies if group[0] in looks]
    twins = find_twins([looks[place].thumbnail for place in chosen], mirrored=flippable)
    return [twin._replace(first=chosen[twin.first], second=chosen[twin.second]) for twin in twins]


def _equal_pixels_joined(
    entries: Sequence[_Entry], copies: list[list[int]], near: list[Twin]
) -> tuple[list[list[int]], list[Twin]]:
    """Near twins that are equal pixel for pixel (the same picture saved anew) join the copies; the others stay near."""
    equal: list[Twin] = []
    left: list[Twin] = []
    for twin in near:
        same = twin.likeness > 0.98 and not twin.mirrored and _equal_pixels(entries[twin.first], entries[twin.second])
        (equal if same else left).append(twin)
    owner = {place: number for number, members in enumerate(copies) for place in members}
    joined = _components(range(len(copies)), [(owner[twin.first], owner[twin.second]) for twin in equal])
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
    if isinstance(entry.pictures, FilePictures):
        return np.asarray(read_picture(io.BytesIO(entry.pictures.data(entry.place))))
    return np.asarray(_in_memory(entry))


def _twin_findings(
    entries: Sequence[_Entry], classes: tuple[str, ...], copies: list[list[int]], near: list[Twin]
) -> Iterable[Finding]:
    """One finding for each group of copies and of near twins, and one more where their classes differ."""
    for group in copies:
        if len(group) > 1:
            yield from _group(entries, classes, group, "exact-duplicate", "the same picture")
    owner = {place: group[0] for group in copies for place in group}
    pairs = [(owner[twin.first], owner[twin.second]) for twin in near]
    mirrored = {owner[twin.first] for twin in near if twin.mirrored}
    for group in _components(sorted({place for pair in pairs for place in pair}), pairs):
        if len(group) == 1:  # its twin became a copy by way of a third picture
            continue
        word = "nearly the same picture" + (", one of them mirrored" if mirrored & set(group) else "")
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


def _leaked(entries: Sequence[_Entry], copies: list[list[int]], near: list[Twin]) -> int:
    """Number of test entries with a copy, or a near twin of a copy, in train."""
    group = {place: members for members in copies for place in members}
    sources: dict[int, set[str]] = {id(members): {entries[place].split for place in members} for members in copies}
    own = {key: set(splits) for key, splits in sources.items()}
    for twin in near:
        one, other = id(group[twin.first]), id(group[twin.second])
        sources[one] |= own[other]
        sources[other] |= own[one]
    leaky = (members for members in copies if "train" in sources[id(members)])
    return sum(entries[place].split == "test" for members in leaky for place in members)


# ---- one look at each picture


def _look_over(entries: Sequence[_Entry]) -> tuple[dict[int, _Look], dict[int, str]]:
    """Decode every picture small, on all cores: place -> what it looks like, and place -> why it cannot be read."""
    looks: dict[int, _Look] = {}
    broken: dict[int, str] = {}
    for place, seen in enumerate(_in_threads(_look, entries)):
        if isinstance(seen, _Look):
            looks[place] = seen
        else:
            broken[place] = seen
    return looks, broken


def _look(entry: _Entry) -> _Look | str:
    if not isinstance(entry.pictures, FilePictures):
        picture = _in_memory(entry)
        return _Look(*picture.size, None, thumbnail(picture))
    try:
        data = entry.pictures.data(entry.place)
        small = thumbnail(read_picture(io.BytesIO(data), short_side=2 * SIDE))
    except OSError as error:
        return _why(error)
    except PictureError as error:
        return str(error).partition(": ")[2]
    with Image.open(io.BytesIO(data)) as opened:
        return _Look(*opened.size, opened.format, small)


def _in_memory(entry: _Entry) -> Image.Image:
    pictures = entry.pictures
    if isinstance(pictures, TensorPictures):
        pixels = pictures.images[pictures.indices[entry.place]]
    else:
        pixels = pictures.load(entry.place, 64)
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
            checks.append((lambda place: looks[place].thumbnail.is_grey, "(nearly) grey among pictures in colour"))
    found = [([entries[place] for place in looks if check(place)], note) for check, note in checks]
    return [_oddity(odd, note) for odd, note in found if odd]


def _oddity(odd: list[_Entry], note: str) -> Finding:
    splits = tuple(dict.fromkeys(entry.split for entry in odd))
    count = f"{len(odd):,} picture" + ("s" if len(odd) > 1 else "")
    return Finding("odd", splits, tuple(entry.name for entry in odd), f"{count} {note}")


def _is_long(look: _Look) -> bool:
    return max(look.width, look.height) > LONG * min(look.width, look.height)


def _lies(name: str, look: _Look) -> bool:
    return look.format is not None and PurePosixPath(name).suffix.lower() not in SUFFIXES.get(look.format, ())


def _counts(part: Pictures, classes: tuple[str, ...]) -> dict[str, int]:
    counts = part.labels.bincount(minlength=len(classes)).tolist()
    return dict(zip(classes, counts, strict=True))


def _lopsided(counts: dict[str, int]) -> list[Finding]:
    """Train classes too unlike in number, in one finding."""
    largest, smallest = max(counts, key=lambda name: counts[name]), min(counts, key=lambda name: counts[name])
    if counts[largest] < LOPSIDED * max(counts[smallest], 1):
        return []
    note = f"class {largest!r} has {counts[largest]:,} training pictures, {smallest!r} only {counts[smallest]:,}"
    return [Finding("imbalance", ("train",), (), note)]
