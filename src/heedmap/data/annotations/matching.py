"""Match annotations to images by path."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from heedmap.data.parts import PARTS
from heedmap.errors import DataError

_ENDINGS = ("_mask", "-mask", "_masks", "_seg", "_segmentation", "_gt", "_label", "_labels")

_Key = tuple[str, ...]


@dataclass(frozen=True)
class Matching:
    """Which annotation belongs to which image.

    Attributes:
        annotation_of: for each image the index of its annotation, or -1.
        unmatched: annotations that belong to none of the images.
        ambiguous: annotations that fit several images, or of which several fit one; they are used for none.
    """

    annotation_of: tuple[int, ...]
    unmatched: tuple[str, ...]
    ambiguous: tuple[str, ...]

    @property
    def notes(self) -> list[str]:
        """One line on what did not fit; none where everything did."""
        missing = sum(index < 0 for index in self.annotation_of)
        notes = [f"{missing} of {len(self.annotation_of)} images have no annotation"] if missing else []
        for word, names in (("fit none of these images", self.unmatched), ("are ambiguous", self.ambiguous)):
            if names:
                notes.append(f"{len(names)} annotations {word} (such as {names[0]})")
        return ["; ".join(notes) + "."] if notes else []


def match_some(images: Sequence[str], annotations: Sequence[str], source: Path) -> Matching:
    """Match as :func:`match` does, where at least one annotation must fit.

    Raises:
        DataError: none does.
    """
    matching = match(images, annotations)
    if max(matching.annotation_of, default=-1) < 0:
        such = f"such as {annotations[0]!r}" if annotations else "there are none"
        raise DataError(f"{source}: no annotation ({such}) fits an image (such as {images[0]!r}) by its path.")
    return matching


def match(images: Sequence[str], annotations: Sequence[str]) -> Matching:
    """Match by relative path without suffix; where that fits nothing, by the end of the path; last, by stem alone.

    By its end, ``cat/7`` fits ``train/cat/7`` and the other way round. By stem, ``labels/7`` fits ``cat/7`` only where
    no other image and no other annotation is called ``7``, and never ``train/7`` a ``test/7``. An annotation may end
    in ``_mask``, ``_seg``, ``_gt`` and the like.

    Args:
        images: paths relative to the data folder.
        annotations: paths or bare names, relative to wherever they come from.
    """
    keys, marks = [_key(name) for name in images], [_key(name) for name in annotations]
    by_end: dict[_Key, list[int]] = defaultdict(list)
    for index, key in enumerate(keys):
        for length in range(1, len(key) + 1):
            by_end[key[-length:]].append(index)
    stems = Counter(mark[-1] for mark in marks)
    folders = {folder for key in keys for folder in key[-2:-1]}
    claims: dict[int, list[tuple[int, int]]] = defaultdict(list)
    unmatched: list[str] = []
    ambiguous: list[str] = []
    for number, mark in enumerate(marks):
        fitting, strength = _fits(mark, keys, by_end)
        if strength == 1:  # a folder that images lie in too would have fitted better, had it been theirs
            fitting = [] if folders & set(mark[-2:-1]) else fitting * min(2, stems[mark[-1]])
        if len(fitting) == 1:
            claims[fitting[0]].append((strength, number))
        else:
            (ambiguous if fitting else unmatched).append(annotations[number])
    chosen = [-1] * len(keys)
    for index, claim in claims.items():
        strongest = max(claim)[0]
        best = [number for strength, number in claim if strength == strongest]
        if len(best) == 1:
            chosen[index] = best[0]
            unmatched += [annotations[number] for strength, number in claim if strength < strongest]
        else:
            ambiguous += [annotations[number] for _, number in claim]
    return Matching(tuple(chosen), tuple(unmatched), tuple(ambiguous))


def _key(name: str) -> _Key:
    path = PurePosixPath(name.replace("\\", "/"))
    return (*(part for part in path.parent.parts if part not in (".", "/")), path.stem)


def _fits(mark: _Key, keys: list[_Key], by_end: dict[_Key, list[int]]) -> tuple[list[int], int]:
    """Images that an annotation fits, and how well: 3 the same path, 2 the end of it, 1 the stem alone."""
    ending = next((ending for ending in _ENDINGS if mark[-1].lower().endswith(ending)), "")
    bare = (*mark[:-1], mark[-1][: -len(ending)]) if ending else mark
    for key in (mark, bare) if ending else (mark,):
        if same := [index for index in by_end.get(key, []) if keys[index] == key]:
            return same, 3
        of_stem = by_end.get(key[-1:], [])
        if fitting := by_end.get(key) or [index for index in of_stem if key[-len(keys[index]) :] == keys[index]]:
            return fitting, 2
        if fitting := [index for index in of_stem if not _in_other_parts(key, keys[index])]:
            return fitting, 1
    return [], 0


def _in_other_parts(first: _Key, second: _Key) -> bool:
    parts = [{PARTS[word.lower()] for word in path[:-1] if word.lower() in PARTS} for path in (first, second)]
    return bool(parts[0] and parts[1]) and not parts[0] & parts[1]
