"""Real images to compare file and model with: some of the run's own test part."""

import numpy as np
from PIL import Image

from heedmap.data import FolderDataset, open_data
from heedmap.data.decoding import read_image
from heedmap.errors import DataError
from heedmap.runs import Run

COUNT = 16


def images_of(run: Run, count: int = COUNT) -> list[Image.Image]:
    """Return up to ``count`` images spread evenly over the test part; files in full size, others in the network's.

    Raises:
        DataError: the data is not there any more; the message says to name other images.
    """
    options = run.options
    try:
        data = open_data(options.data, root=options.root, download=False, seed=options.seed, test_share=options.test)
    except DataError as error:
        raise DataError(f"{error} Or name images with --images.") from None
    part = data.test if data.test is not None else data.train
    rows = np.linspace(0, len(part) - 1, min(count, len(part))).astype(int).tolist()
    if isinstance(part, FolderDataset):
        return [read_image(part.path(row)) for row in rows]
    size = run.architecture.image_size
    return [Image.fromarray(part.load(row, size).permute(1, 2, 0).numpy()) for row in rows]
