"""Audit a dataset before training: duplicates, leaks between parts, odd files, imbalanced classes."""

import io
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath
from typing import Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from heedmap.config import counted
from heedmap.data.audit.near_duplicates import SIDE, NearDuplicate, Thumbnail, find_near_duplicates, thumbnail
from heedmap.data.cache.folder import digest
from heedmap.data.dataset import FileDataset, ImageDataset, Splits, TensorDataset
from heedmap.data.decoding import read_image
from heedmap.errors import DataError, ImageError, nearest
from heedmap.system import cores
from heedmap.types import Audit, Finding

DEPTHS = ("cheap", "full")
IMBALANCE = 3.0  # largest class over smallest, from which it is a finding
RARE = 0.1  # a form (size, grey) that fewer than this fraction of the images have is odd
LONG = 3.0  # a longer image than 3 : 1 loses two thirds to the square crop
SUFFIXES = {
    **{"JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"), "MPO": (".jpg", ".jpeg", ".mpo"), "PNG": (".png", ".apng")},
    **{"BMP": (".bmp", ".dib"), "GIF": (".gif",), "WEBP": (".webp",), "TIFF": (".tif", ".tiff")},
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
}
_BLOCK = 4096  # images handed to the threads at a time

_Result = TypeVar("_Result")
_Groups = list[list[int]]


class _Entry(NamedTuple):
    """One image of one part."""

    part: str
    images: ImageDataset
    row: int

    @property
    def name(self) -> str:
        return self.images.names[self.row]

    def data(self) -> bytes | NDArray[np.uint8]:
        """Return the image's file, or the pixels (H, W, 3) of an image in memory."""
        if isinstance(self.images, FileDataset):
            return self.images.data(self.row)
        if isinstance(self.images, TensorDataset):
            pixels = self.images.images[self.images.indices[self.row]]
        else:
            pixels = self.images.load(self.row, 64)
        return pixels.permute(1, 2, 0).contiguous().numpy()

    def length(self) -> int | tuple[int, ...]:
        """Return something cheap that equal images have in common."""
        if isinstance(self.images, FileDataset):
            return self.images.length(self.row)
        return tuple(self.images.images.shape[1:]) if isinstance(self.images, TensorDataset) else (3, 64, 64)


class _Summary(NamedTuple):
    """A decoded image."""

    size: tuple[int, int]  # (width, height) as stored
    format: str | None  # None in memory
    thumbnail: Thumbnail


def audit(
    splits: Splits, depth: Literal["cheap", "full"] = "cheap", digests: Mapping[str, Sequence[bytes]] | None = None
) -> Audit:
    """Audit a dataset.

    ``cheap`` compares files of equal length by their bytes, or all by their digests where these are given, and counts
    classes. ``full`` decodes every image at a small size and finds near duplicates within and across the parts
    (:mod:`heedmap.data.audit.near_duplicates`; mirror images too where the set is flippable), same pixels in different
    files, unreadable files, and odd ones: another size than nine of ten, grey among colour, longer than 3 : 1, one
    colour only, a suffix that does not fit the format.

    Duplicates are one finding for each group; where their classes differ there is a ``conflicting-labels`` finding
    beside it. ``leaked`` counts the images of ``test`` with a duplicate in train. ``digests``, as
    :class:`heedmap.data.cache.verified.VerifiedSplits` has them of all parts in files, save reading files for their
    bytes.

    Raises:
        DataError: for another depth.
    """
    if depth not in DEPTHS:
        raise DataError(f"An audit is 'cheap' or 'full', not {depth!r}.{nearest(str(depth), DEPTHS)}")
    begun = time.perf_counter()
    entries = [_Entry(name, part, row) for name, part in splits.parts.items() for row in range(len(part))]
    findings = [Finding("unreadable", (), (path,), reason) for path, reason in splits.unreadable]
    known = [content for name, part in splits.parts.items() for content in (digests or {}).get(name, [b""] * len(part))]
    copies, broken = _same_bytes(entries, known)
    near: list[NearDuplicate] = []
    if depth == "full":
        results = list(enumerate(_in_threads(_summary, entries)))
        broken |= {place: reason for place, reason in results if isinstance(reason, str)}
        summaries = {place: summary for place, summary in results if not isinstance(summary, str)}
        findings += _odd(entries, summaries)
        chosen = [group[0] for group in copies if group[0] in summaries]  # one of each group
        near = [
            pair._replace(first=chosen[pair.first], second=chosen[pair.second])
            for pair in find_near_duplicates([summaries[i].thumbnail for i in chosen], mirrored=splits.flippable)
        ]
        copies, near = _join_equal_pixels(entries, copies, near)
    findings += [Finding("unreadable", (entries[i].part,), (entries[i].name,), why) for i, why in broken.items()]
    findings += _duplicates(entries, copies, near)
    per_class = {
        name: dict(zip(splits.classes, part.labels.bincount(minlength=len(splits.classes)).tolist(), strict=True))
        for name, part in splits.parts.items()
    }
    findings += _imbalance(per_class["train"])
    images, leaked = {name: len(part) for name, part in splits.parts.items()}, _leaked(entries, copies, near)
    return Audit(images, per_class, tuple(findings), leaked, time.perf_counter() - begun, depth)


def leakage_flag(accuracy: float, audit: Audit, test_count: int) -> str | None:
    """Return a warning where leaked test images could explain an accuracy, else None.

    That is where more than 1 % of the test images have a duplicate in train, or where the accuracy is above 96 % and
    the leaked images are at least a quarter as many as the errors. The bound in it supposes that each leaked image was
    predicted correctly: (right - leaked) / (test_count - leaked). A cheap audit knows byte-identical duplicates alone,
    as the sentence notes.

    Raises:
        ValueError: accuracy outside 0 to 1, or no test images.
    """
    if not 0 <= accuracy <= 1 or test_count < 1:
        raise ValueError(f"accuracy must be in 0..1 of at least one image, not {accuracy} of {test_count}.")
    leaked, right = min(audit.leaked, test_count), accuracy * test_count
    is_telling = accuracy > 0.96 and leaked >= max(1.0, (test_count - right) / 4)
    if leaked <= 0.01 * test_count and not is_telling:
        return None
    clean = test_count - leaked
    bound = (
        f"on the other {clean:,} the accuracy may be as low as {max(0.0, (right - leaked) / clean):.1%}"
        if clean
        else "there is no test image that was not trained on"
    )
    kind = "a byte-identical duplicate" if audit.depth == "cheap" else "a duplicate"
    fraction = f"{leaked:,} of {test_count:,} test images ({leaked / test_count:.1%})"
    return f"Leakage: {fraction} have {kind} in train; {bound}."


def _in_threads(work: Callable[[_Entry], _Result], entries: Sequence[_Entry]) -> Iterator[_Result | str]:
    """Yield the result of ``work``, or why the image cannot be read, for each entry in order, on all cores."""

    def safely(entry: _Entry) -> _Result | str:
        try:
            return work(entry)
        except OSError as error:
            return f"it cannot be read ({error.strerror or error})"
        except ImageError as error:
            return str(error).partition(": ")[2]

    with ThreadPoolExecutor(cores()) as pool:
        for start in range(0, len(entries), _BLOCK):  # not a million futures at once
            yield from pool.map(safely, entries[start : start + _BLOCK])


def _digest(entry: _Entry) -> bytes:
    data = entry.data()
    return digest(data if isinstance(data, bytes) else data.data)


def _summary(entry: _Entry) -> _Summary:
    data = entry.data()
    if not isinstance(data, bytes):
        image = Image.fromarray(data)
        return _Summary(image.size, None, thumbnail(image))
    small = thumbnail(read_image(io.BytesIO(data), short_side=2 * SIDE))
    with Image.open(io.BytesIO(data)) as opened:
        return _Summary(opened.size, opened.format, small)


def _same_bytes(entries: Sequence[_Entry], known: Sequence[bytes]) -> tuple[_Groups, dict[int, str]]:
    """Group entries whose bytes are equal (every entry is in one group), and name those that cannot be read.

    Where the digest of the bytes is not ``known`` (empty), only entries of a length that others have too are read.
    """
    groups, lengths = defaultdict[object, list[int]](list), defaultdict[object, list[int]](list)
    broken: dict[int, str] = {}
    for place, (entry, content) in enumerate(zip(entries, known, strict=True)):
        try:
            if content:
                groups[content].append(place)
            elif length := entry.length():
                lengths[length].append(place)
            else:
                broken[place] = "the file is empty (0 bytes)"
        except OSError as error:
            broken[place] = f"it cannot be read ({error.strerror or error})"
    groups |= {places[0]: places for places in lengths.values() if len(places) == 1}
    alike = [(place, size) for size, places in lengths.items() if len(places) > 1 for place in places]
    contents = _in_threads(_digest, [entries[place] for place, _ in alike])
    for (place, size), result in zip(alike, contents, strict=True):
        if isinstance(result, str):
            broken[place] = result
        else:
            groups[(size, result)].append(place)
    return sorted(groups.values()), broken


def _join_equal_pixels(
    entries: Sequence[_Entry], copies: _Groups, near: list[NearDuplicate]
) -> tuple[_Groups, list[NearDuplicate]]:
    """Move near duplicates that are equal pixel for pixel to the copies."""

    def pixels(place: int) -> NDArray[np.uint8]:
        data = entries[place].data()
        return np.asarray(read_image(io.BytesIO(data))) if isinstance(data, bytes) else data

    equal, others = list[NearDuplicate](), list[NearDuplicate]()
    for pair in near:
        is_equal = (
            pair.likeness > 0.98 and not pair.mirrored and np.array_equal(pixels(pair.first), pixels(pair.second))
        )
        (equal if is_equal else others).append(pair)
    owner = {place: number for number, group in enumerate(copies) for place in group}
    joined = _components(len(copies), [(owner[pair.first], owner[pair.second]) for pair in equal])
    return [[place for number in numbers for place in copies[number]] for numbers in joined], others


def _components(count: int, pairs: Sequence[tuple[int, int]]) -> _Groups:
    """Return the connected components of a graph of ``count`` nodes."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    edges = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    graph = coo_array((np.ones(len(edges), bool), (edges[:, 0], edges[:, 1])), (count, count))
    groups = defaultdict[int, list[int]](list)
    for node, component in enumerate(connected_components(graph, directed=False)[1].tolist()):
        groups[component].append(node)
    return list(groups.values())


def _duplicates(entries: Sequence[_Entry], copies: _Groups, near: list[NearDuplicate]) -> Iterator[Finding]:
    """Yield a finding for each group of copies and of near duplicates, and one more where their classes differ."""
    for group in copies:
        if len(group) > 1:
            yield from _group(entries, group, "exact-duplicate", "the same image")
    owner = {place: group[0] for group in copies for place in group}
    pairs = [(owner[pair.first], owner[pair.second]) for pair in near]
    mirrored = {owner[pair.first] for pair in near if pair.mirrored}
    for group in _components(len(entries), pairs):
        if len(group) > 1:
            word = "nearly the same image" + (", one of them mirrored" if mirrored & set(group) else "")
            yield from _group(entries, group, "near-duplicate", word)


def _group(entries: Sequence[_Entry], group: list[int], kind: str, word: str) -> Iterator[Finding]:
    members = [entries[place] for place in sorted(group)]
    parts = tuple(dict.fromkeys(entry.part for entry in members))
    paths = tuple(entry.name for entry in members)
    across = f" across {' and '.join(parts)}" if len(parts) > 1 else ""
    yield Finding(kind, parts, paths, f"{len(paths)} times {word}{across}")
    labels = tuple(dict.fromkeys(entry.images.classes[int(entry.images.labels[entry.row])] for entry in members))
    if len(labels) > 1:
        yield Finding("conflicting-labels", parts, paths, f"{word} under different classes: {', '.join(labels)}")


def _leaked(entries: Sequence[_Entry], copies: _Groups, near: list[NearDuplicate]) -> int:
    """Count the test entries with a copy, or a near duplicate of a copy, in train."""
    owner = {place: number for number, group in enumerate(copies) for place in group}
    own = [{entries[place].part for place in group} for group in copies]
    sources = [set(parts) for parts in own]
    for pair in near:
        first, second = owner[pair.first], owner[pair.second]
        sources[first] |= own[second]
        sources[second] |= own[first]
    leaky = (group for group, parts in zip(copies, sources, strict=True) if "train" in parts)
    return sum(entries[place].part == "test" for group in leaky for place in group)


def _odd(entries: Sequence[_Entry], summaries: dict[int, _Summary]) -> list[Finding]:
    """Return one finding for each kind of oddity, naming all the files."""
    if not summaries:
        return []
    usual, most = Counter(image.size for image in summaries.values()).most_common(1)[0]
    odd: dict[str, list[int]] = {
        "longer than 3 : 1; the square crop loses most of it": [],
        "of one colour only": [],
        "whose suffix does not fit the format": [],
        f"of another size than the {usual[0]}x{usual[1]} of the rest": [],
        "(nearly) grey among images in colour": [],
    }
    long, plain, misnamed, resized, grey = odd.values()
    for place, image in summaries.items():
        if max(image.size) > LONG * min(image.size):
            long.append(place)
        if image.thumbnail.is_plain:
            plain.append(place)
        suffix = PurePosixPath(entries[place].name).suffix.lower()
        if image.format is not None and suffix not in SUFFIXES.get(image.format, ()):
            misnamed.append(place)
        if image.size != usual and most >= (1 - RARE) * len(summaries):
            resized.append(place)
        if image.thumbnail.is_grey:
            grey.append(place)
    if len(grey) > RARE * len(summaries):
        grey.clear()
    findings = []
    for note, members in ((note, [entries[place] for place in places]) for note, places in odd.items() if places):
        parts, paths = dict.fromkeys(entry.part for entry in members), tuple(entry.name for entry in members)
        findings.append(Finding("odd", tuple(parts), paths, f"{counted(len(paths), 'image')} {note}"))
    return findings


def _imbalance(counts: dict[str, int]) -> list[Finding]:
    """Report classes of train that differ much in number, in one finding."""
    largest, smallest = max(counts, key=counts.__getitem__), min(counts, key=counts.__getitem__)
    if counts[largest] < IMBALANCE * max(counts[smallest], 1):
        return []
    note = f"class {largest!r} has {counts[largest]:,} training images, {smallest!r} only {counts[smallest]:,}"
    return [Finding("imbalance", ("train",), (), note)]
