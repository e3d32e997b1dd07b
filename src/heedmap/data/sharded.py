"""Shards as a data set: which tar files are meant, which part each is, and what the labels are."""

from __future__ import annotations

import glob
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from heedmap.data.folders import PARTS, find_splits, natural, split_by_class
from heedmap.data.pictures import Splits
from heedmap.data.shards import ShardIndex, ShardPictures, index_shard
from heedmap.errors import DataError, nearest
from heedmap.options import counted

__all__ = ["CLASSES", "expand_braces", "expand_shards", "is_sharded", "open_shards"]

CLASSES = "classes.txt"
"""One class name a line; the line's number, from 0, is what a ``.cls`` member says."""

_SUFFIX = ".tar"
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_MOST = 100_000


def expand_braces(pattern: str) -> list[str]:
    """Return the names that ``{000..127}`` and ``{a,b}`` stand for, as a shell writes them out.

    Raises:
        DataError: more than a hundred thousand names.
    """
    found = _BRACES.search(pattern)
    if found is None:
        return [pattern]
    span = _RANGE.fullmatch(found[1])
    if span:
        low, high = int(span[1]), int(span[2])
        if abs(high - low) >= _MOST:
            raise DataError(f"{pattern} stands for more than {_MOST:,} names; take fewer.")
        step = 1 if high >= low else -1
        choices = [f"{number:0{len(span[1])}d}" for number in range(low, high + step, step)]
    elif "," in found[1]:
        choices = found[1].split(",")
    else:  # as in a shell: braces around a single word are letters like any others
        return [found[0].join((pattern[: found.start()], rest)) for rest in expand_braces(pattern[found.end() :])]
    names: list[str] = []
    for choice in choices:
        names += expand_braces(pattern[: found.start()] + choice + pattern[found.end() :])
        if len(names) > _MOST:
            raise DataError(f"{pattern} stands for more than {_MOST:,} names; take fewer.")
    return names


def expand_shards(pattern: str | Path) -> list[Path]:
    """Return the tar files that a name, a pattern with ``*`` or one with braces means; of a folder, those in it.

    Raises:
        DataError: one that braces name is not there, or none fits.
    """
    text = str(Path(pattern).expanduser())
    if Path(text).is_dir():
        found = sorted(Path(text).glob(f"*{_SUFFIX}"), key=lambda path: natural(path.name))
        if not found:
            raise DataError(f"Folder {text} holds no shards (*{_SUFFIX}).")
        return found
    shards: list[Path] = []
    for name in [text] if Path(text).is_file() else expand_braces(text):
        if Path(name).is_file():
            shards.append(Path(name))
        elif fitting := sorted(glob.glob(name, recursive=True), key=natural):  # noqa: PTH207  Path.glob takes no absolute pattern
            shards += map(Path, fitting)
        else:
            hint = nearest(Path(name).name, [path.name for path in Path(name).parent.glob(f"*{_SUFFIX}")], cutoff=0.7)
            raise DataError(f"There is no shard {name}.{hint}")
    return list(dict.fromkeys(shards))


def is_sharded(data: str | Path) -> bool:
    """Whether the data is called by a tar file, a pattern of them, or a folder that holds them and no class folders."""
    text = str(data)
    path = Path(text).expanduser()
    if not path.is_dir():
        return text.endswith(_SUFFIX)
    parts = [child for child in path.iterdir() if child.is_dir() and child.name.lower() in PARTS]
    return any(_holds_shards(folder) for folder in parts or (path,))


def _holds_shards(folder: Path) -> bool:
    # A tar file left beside class folders is what they were unpacked from.
    has_folders = any(child.is_dir() and not child.name.startswith(".") for child in folder.iterdir())
    return not has_folders and next(folder.glob(f"*{_SUFFIX}"), None) is not None


def open_shards(data: str | Path, *, test: float = 0.2, seed: int = 0, cache: Path | None = None) -> Splits:
    """Read the index of each shard and make parts and classes of them.

    Parts are told by folder (``DIR/train/*.tar``) or by the beginning of the name (``DIR/train-*.tar``); shards without
    either are all to learn from, and a share of each class is set apart as the test part.

    Args:
        data: a folder, a tar file, or a pattern such as ``shards/train-{000..009}.tar``.
        test: share in (0, 1) of each class to set apart where there is no test part.
        seed: of that draw.
        cache: see :func:`heedmap.data.shards.index_shard`.

    Raises:
        DataError: no shards, a damaged one, pictures without labels, labels that do not fit the classes, or one class.
    """
    parts = _parts(data)
    indexes = {part: [index_shard(path, cache) for path in shards] for part, shards in parts.items()}
    _check(indexes)
    classes, numbered = _classes(Path(data), indexes)
    opened = {part: _pictures(indexes[part], classes, numbered) for part in indexes}
    notes = [
        f"{part}: {counted(len(opened[part]), 'picture')} in {counted(len(shards), 'shard')}."
        for part, shards in parts.items()
    ]
    passed = sum(index.passed_over for each in indexes.values() for index in each)
    if passed:
        notes.append(f"Members of shards that are neither picture nor label, passed over: {passed:,}.")
    if "test" not in opened and "validation" in opened:
        opened["test"] = opened.pop("validation")
        notes.append("There are no test shards, so those of validation are the test part.")
    train = opened["train"]
    _check_train(train, str(data))
    splits = Splits(str(data), classes, train, opened.get("validation"), opened.get("test"), notes=tuple(notes))
    if splits.test is not None:
        return splits
    kept, taken = split_by_class(train.labels, test, seed)
    notes.append(f"There are no test shards, so {test:.0%} of each class was set apart with seed {seed}.")
    return replace(splits, train=train.subset(kept), test=train.subset(taken), notes=tuple(notes))


def _parts(data: str | Path) -> dict[str, list[Path]]:
    path = Path(data).expanduser()
    if not path.is_dir():
        return {"train": expand_shards(data)}
    if found := find_splits(path):
        return {part: expand_shards(folder) for part, folder in found.items()}
    shards = expand_shards(path)
    begun: dict[str, list[Path]] = {}
    for shard in shards:
        part = PARTS.get(re.split(r"[-_.\d]", shard.name.lower(), maxsplit=1)[0])
        if part is not None:
            begun.setdefault(part, []).append(shard)
    if "train" in begun and sum(map(len, begun.values())) < len(shards):
        other = next(shard for shard in shards if not any(shard in each for each in begun.values()))
        raise DataError(f"{path}: shard {other.name} is named like no part, beside those that are; move it away.")
    return begun if "train" in begun else {"train": shards}


def _check(indexes: Mapping[str, Sequence[ShardIndex]]) -> None:
    for index in (index for each in indexes.values() for index in each):
        if index.trouble:
            raise DataError(f"Shard {index.path}: {index.trouble}; copy or pack it anew, or leave it out.")
        if None in index.labels:
            name = index.names[index.labels.index(None)]
            raise DataError(
                f"Shard {index.path}: picture {name} has no label; give it a .cls, .json or .txt of the same key, or a "
                "folder named like its class."
            )


def _classes(data: Path, indexes: Mapping[str, Sequence[ShardIndex]]) -> tuple[tuple[str, ...], bool]:
    """The class names, and whether labels are their numbers."""
    words = {str(label) for each in indexes.values() for index in each for label in index.labels}
    numbered = all(word.isascii() and word.isdigit() for word in words)
    home = indexes["train"][0].path.parent
    places = [data / CLASSES] if data.is_dir() else [home / CLASSES, home.parent / CLASSES]
    listed = next((place for place in places if place.is_file()), None)
    if listed is not None:
        text = listed.read_text(encoding="utf-8")
        names = tuple(line.strip() for line in text.splitlines() if line.strip())
        numbered = numbered and not words <= set(names)
        unknown = sorted(w for w in words if (int(w) >= len(names) if numbered else w not in names))
        if unknown:
            raise DataError(f"{listed} has {len(names)} names, and label {unknown[0]!r} is none of them.")
        return names, numbered
    if numbered:
        return tuple(map(str, range(max(map(int, words), default=-1) + 1))), True
    return tuple(sorted(words, key=natural)), False


def _pictures(indexes: Sequence[ShardIndex], classes: tuple[str, ...], numbered: bool) -> ShardPictures:
    places = [(n, *place) for n, index in enumerate(indexes) for place in zip(index.offsets, index.sizes, strict=True)]
    names = [f"{index.path.name}/{name}" for index in indexes for name in index.names]
    place_of = {str(number) if numbered else name: number for number, name in enumerate(classes)}
    labels = [int(str(label)) if numbered else place_of[str(label)] for index in indexes for label in index.labels]
    return ShardPictures(
        [index.path for index in indexes],
        torch.tensor(places, dtype=torch.int64).reshape(-1, 3),
        names,
        torch.tensor(labels, dtype=torch.int64),
        classes,
    )


def _check_train(train: ShardPictures, data: str) -> None:
    if len(train) == 0:
        raise DataError(f"The shards {data} hold no pictures.")
    counts = Counter(train.labels.tolist())
    if len(counts) < 2:
        raise DataError(f"The shards {data} hold one class only; a classifier needs two or more.")
    missing = [name for number, name in enumerate(train.classes) if number not in counts]
    if missing:
        raise DataError(
            f"The shards {data} hold no picture to learn class {missing[0]!r} from; pack some, or leave it out."
        )
