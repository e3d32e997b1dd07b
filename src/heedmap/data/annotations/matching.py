"""Which annotation belongs to which image, by path."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from heedmap.errors import DataError

__all__ = ["Matching", "match", "refuse_none"]

_ENDINGS = ("_mask", "-mask", "_masks", "_seg", "_segmentation", "_gt", "_label", "_labels")
_PARTS = {"train": "train", "test": "test", "val": "validation", "valid": "validation", "validation": "validation"}


@dataclass(frozen=True)
class Matching:
    """What belongs together.

    Attributes:
        annotation_of: for each image the place of its annotation, or -1.
        unmatched: annotations that belong to none of the images.
        ambiguous: annotations that fit several images, or of which several fit one; they are used for none.
    """

    annotation_of: tuple[int, ...]
    unmatched: tuple[str, ...]
    ambiguous: tuple[str, ...]

    @property
    def note(self) -> str:
        """One line on what did not fit; empty where everything did."""
        missing = sum(place < 0 for place in self.annotation_of)
        said = [f"{missing} of {len(self.annotation_of)} images have no annotation"] if missing else []
        for word, names in (("fit none of these images", self.unmatched), ("are ambiguous", self.ambiguous)):
            if names:
                said.append(f"{len(names)} annotations {word} (such as {names[0]})")
        return "; ".join(said) + "." if said else ""


def match(images: Sequence[str], annotations: Sequence[str]) -> Matching:
    """Match by relative path without suffix; where that fits nothing, by the end of the path; last, by stem alone.

    By its end, ``cat/7`` fits ``train/cat/7`` and the other way round. By stem, ``labels/7`` fits ``cat/7`` only where
    no other image and no other annotation is called ``7``, and never ``train/7`` a ``test/7``. An annotation may end
    in ``_mask``, ``_seg``, ``_gt`` and the like.

    Args:
        images: paths relative to the data folder.
        annotations: paths or bare names, relative to wherever they come from.
    """
    keys, marks = [_parts(name) for name in images], [_parts(name) for name in annotations]
    by_end: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for place, key in enumerate(keys):
        for length in range(1, len(key) + 1):
            by_end[key[-length:]].append(place)
    stems = Counter(mark[-1] for mark in marks)
    folders = {folder for key in keys for folder in key[-2:-1]}
    claims: dict[int, list[tuple[int, int]]] = defaultdict(list)
    unmatched: list[str] = []
    ambiguous: list[str] = []
    for number, mark in enumerate(marks):
        found, strength = _fits(mark, keys, by_end)
        if strength == 1:  # a folder that images lie in too would have fitted better, had it been theirs
            found = [] if folders & set(mark[-2:-1]) else found * min(2, stems[mark[-1]])
        if len(found) == 1:
            claims[found[0]].append((strength, number))
        else:
            (ambiguous if found else unmatched).append(annotations[number])
    chosen = [-1] * len(keys)
    for place, claim in claims.items():
        strongest = max(claim)[0]
        best = [number for strength, number in claim if strength == strongest]
        if len(best) == 1:
            chosen[place] = best[0]
            unmatched += [annotations[number] for strength, number in claim if strength < strongest]
        else:
            ambiguous += [annotations[number] for _, number in claim]
    return Matching(tuple(chosen), tuple(unmatched), tuple(ambiguous))


def _parts(name: str) -> tuple[str, ...]:
    path = PurePosixPath(name.replace("\\", "/"))
    return (*(part for part in path.parent.parts if part not in (".", "/")), path.stem)


def _fits(
    mark: tuple[str, ...], keys: list[tuple[str, ...]], by_end: dict[tuple[str, ...], list[int]]
) -> tuple[list[int], int]:
    """Images that an annotation fits, and how well: 3 the same path, 2 the end of it, 1 the stem alone."""
    ending = next((ending for ending in _ENDINGS if mark[-1].lower().endswith(ending)), "")
    bare = (*mark[:-1], mark[-1][: -len(ending)]) if ending else mark
    for key in (mark, bare) if ending else (mark,):
        if same := [place for place in by_end.get(key, []) if keys[place] == key]:
            return same, 3
        if found := by_end.get(key) or [
            place for place in by_end.get(key[-1:], []) if key[-len(keys[place]) :] == keys[place]
        ]:
            return found, 2
        if found := [place for place in by_end.get(key[-1:], []) if not _of_other_parts(key, keys[place])]:
            return found, 1
    return [], 0


def _of_other_parts(one: tuple[str, ...], other: tuple[str, ...]) -> bool:
    parts = [{_PARTS[word.lower()] for word in path[:-1] if word.lower() in _PARTS} for path in (one, other)]
    return bool(parts[0] and parts[1]) and not parts[0] & parts[1]


def refuse_none(matching: Matching, path: Path, keys: Sequence[str], images: Sequence[str]) -> None:
    """Refuse annotations of which none belongs to an image.

    Raises:
        DataError: none does.
    """
    if max(matching.annotation_of, default=-1) < 0:
        such = f"such as {keys[0]!r}" if keys else "there are none"
        raise DataError(f"{path}: no annotation ({such}) fits an image (such as {images[0]!r}) by its path.")
