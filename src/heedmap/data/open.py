"""Open a dataset by name, folder or shards."""

from dataclasses import replace
from pathlib import Path

from heedmap.data.digit_scenes import SCENES, open_digit_scenes
from heedmap.data.folders import open_folder
from heedmap.data.splits import Splits
from heedmap.data.torchvision_sets import NAMED, open_named
from heedmap.data.webdataset.dataset import open_shards
from heedmap.data.webdataset.index import is_sharded
from heedmap.errors import DataError, nearest

DIGIT_SCENES = tuple(SCENES)


def open_data(
    data: str | Path,
    *,
    root: str | Path = "data",
    download: bool = True,
    seed: int = 0,
    test_share: float = 0.2,
    cache: Path | None = None,
) -> Splits:
    """Open a dataset.

    Args:
        data: ``digit-scenes``, a named set (``NAMED``), a folder, or tar shards (a folder of them, or a pattern such as
            ``shards/train-{000..009}.tar``). A name wins over a folder of the same name; write ``./cifar10`` for the
            folder.
        root: where the files of named sets are, or are downloaded to.
        download: fetch the files of a named set that are missing.
        seed: of the digit scenes, and of the test part drawn from a folder that has none.
        test_share: share of each class for that test part.
        cache: folder that caches the indexes of shards; None caches nothing.

    Returns:
        The parts. Files are listed, not yet decoded: see :func:`heedmap.data.cache.verified.verify_images`.

    Raises:
        DataError: see :func:`open_folder`, :func:`open_shards` and :func:`open_named`.
        OptionError: ``test_share`` does not lie between 0 and 1.
    """
    name = str(data)
    known = [*DIGIT_SCENES, *NAMED]
    if name in known:
        splits = open_named(name, root, download) if name in NAMED else open_digit_scenes(seed=seed, name=name)
        note = f"There is also a folder {name!r} here; write ./{name} to mean it."
        return replace(splits, notes=(*splits.notes, note)) if Path(name).is_dir() else splits
    if is_sharded(data):
        return open_shards(data, test=test_share, seed=seed, cache=cache)
    if not Path(data).exists() and (hint := nearest(name, known)):
        raise DataError(f"There is no folder {name!r}, and the named sets are {', '.join(known)}.{hint}")
    return open_folder(data, test=test_share, seed=seed)
