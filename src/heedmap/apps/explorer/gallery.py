"""Which images the explorer may show, and what is cached of each: the network's view of it and one to look at.

A request names an image by a short reference (``s0-12``: the 13th of the first source; ``u-...``: an upload), never by
a path, so no path can lead elsewhere. Links that lead out of a folder are left out when it is listed, and refused when
they were put there afterwards.
"""

from __future__ import annotations

import io
import re
import secrets
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from PIL import Image
from torch import Tensor

from heedmap.apps.uploads import check_scans
from heedmap.data import FolderDataset, ImageDataset, read_image, square, to_tensor
from heedmap.data.decoding import MAX_PIXELS
from heedmap.errors import DataError, ImageError
from heedmap.inference.listing import expand_images

VIEW, THUMBNAIL = 512, 112  # sides in pixels of the squares that the page shows
MAX_UPLOADS = 200  # about 1 MB each; the page sends an image again when its upload was dropped
MAX_LISTED = 20_000
_CACHED = 96  # images of the folders that stay decoded
_decoding = threading.BoundedSemaphore(2)  # an image of MAX_PIXELS takes up to 1 GB while it is decoded


@dataclass(frozen=True)
class GalleryImage:
    """A decoded image.

    Attributes:
        name, label: for the page; the label is its class, where it is known.
        images: image_size -> uint8 (3, S, S), what a network of that size sees.
        view: RGB, ``VIEW`` x ``VIEW``: the same square to look at.
        box: (left, top, right, bottom) of the object as shares of the square, where it is known.
    """

    name: str
    label: str | None
    images: dict[int, Tensor]
    view: Image.Image
    box: tuple[float, ...] | None = None


@dataclass(frozen=True)
class ImageSource:
    """Images to browse: a named folder, or a run's test set.

    Attributes:
        names, labels: of the images; a label is None where the class is not known.
        notes: what is not shown, in sentences.
        root: the folder that ``names`` are relative to, where the images are files.
        dataset: the images as data, where they are a test set.
    """

    title: str
    names: tuple[str, ...]
    labels: tuple[str | None, ...]
    notes: tuple[str, ...] = ()
    root: Path | None = None
    dataset: ImageDataset | None = None

    @classmethod
    def of_folder(cls, path: str | Path, classes: Iterable[str]) -> ImageSource:
        """List a folder, file or pattern, or raise a DataError; an image's label is its folder, if that is a class."""
        named, files, known = Path(path).expanduser(), expand_images(str(path)), set(classes)
        root = (named if named.is_dir() else files[0].parent).resolve()
        inside = [file for file in files if file.resolve().is_relative_to(root)]
        if not inside:
            raise DataError(f"{path}: every image in it is a link to another folder; name that folder.")
        names = tuple(file.resolve().relative_to(root).as_posix() for file in inside[:MAX_LISTED])
        labels = tuple(file.parent.name if file.parent.name in known else None for file in inside[:MAX_LISTED])
        return cls(named.resolve().name, names, labels, _notes(str(path), len(files), len(inside)), root)

    @classmethod
    def of_dataset(cls, title: str, dataset: ImageDataset) -> ImageSource:
        """List a test set."""
        root, count = None, len(dataset)
        if isinstance(dataset, FolderDataset):
            root = dataset.root.resolve()
            resolved = ((root / name).resolve() for name in dataset.names)
            dataset = dataset.subset([index for index, file in enumerate(resolved) if file.is_relative_to(root)])
        labels = tuple(dataset.classes[label] for label in dataset.labels[:MAX_LISTED].tolist())
        return cls(title, dataset.names[:MAX_LISTED], labels, _notes(title, count, len(dataset)), root, dataset)

    def image(self, index: int, sizes: Iterable[int], max_pixels: int = MAX_PIXELS) -> GalleryImage:
        """Decode an image, or raise an ImageError where that fails or it lies outside the folder by now."""
        name, label = self.names[index], self.labels[index]
        if self.root is not None:
            return decode_gallery_image(confined(self.root, name), name, label, sizes, max_pixels)
        assert self.dataset is not None  # images are files or data
        images = {size: self.dataset.load(index, size) for size in sizes}
        view = Image.fromarray(self.dataset.load(index, VIEW).permute(1, 2, 0).numpy())
        box = None if self.dataset.boxes is None else tuple(self.dataset.boxes[index].tolist())
        return GalleryImage(name, label, images, view, box)


def _notes(title: str, count: int, inside: int) -> tuple[str, ...]:
    notes = []
    if inside < count:
        notes.append(f"{title}: {count - inside} links lead out of the folder; their files are not shown.")
    if inside > MAX_LISTED:
        notes.append(f"{title}: the first {MAX_LISTED:,} of {inside:,} images are shown.")
    return tuple(notes)


def confined(root: Path, name: str) -> Path:
    """Return the file ``name`` under ``root``, or raise an ImageError where ``..`` or a link leads out of it."""
    path = (root / name).resolve()
    if not path.is_relative_to(root.resolve()):
        raise ImageError(f"{name}: it leads out of the opened folder, and is not shown.")
    return path


class _NamedBytes(io.BytesIO):
    """Bytes with a name, with which messages about the image begin."""

    def __init__(self, content: bytes, name: str) -> None:
        super().__init__(content)
        self.name = name


def decode_gallery_image(
    file: Path | _NamedBytes, name: str, label: str | None, sizes: Iterable[int], max_pixels: int = MAX_PIXELS
) -> GalleryImage:
    """Decode an image for networks of several sizes, each as in training, and to look at; an ImageError names it."""

    def at(size: int) -> Image.Image:
        if isinstance(file, _NamedBytes):
            file.seek(0)
        return square(read_image(file, short_side=size, max_pixels=max_pixels), size)

    with _decoding:
        try:
            images = {size: to_tensor(at(size)) for size in sizes}
            return GalleryImage(name, label, images, at(VIEW))
        except ImageError as error:
            raise ImageError(f"{name}: {str(error).removeprefix(f'{file}: ').removeprefix(f'{name}: ')}") from None


class Gallery:
    """All images that can be shown, by reference: of sources, and uploads; ``sizes`` are what the networks see."""

    def __init__(self, sources: Sequence[ImageSource], sizes: Iterable[int], max_pixels: int = MAX_PIXELS) -> None:
        self.sources = tuple(sources)
        self._sizes, self._max_pixels = tuple(sorted(set(sizes))), max_pixels
        self._uploads: OrderedDict[str, GalleryImage] = OrderedDict()
        self._lock = threading.Lock()
        self._decoded = lru_cache(maxsize=_CACHED)(
            lambda source, index: self.sources[source].image(index, self._sizes, self._max_pixels)
        )

    def upload(self, content: bytes, name: str) -> str:
        """Decode and cache an upload, or raise an ImageError; return its reference, which cannot be guessed."""
        name = re.sub(r"[\x00-\x1f\x7f]", " ", name)[-120:].strip() or "image"
        check_scans(content)
        image = decode_gallery_image(_NamedBytes(content, name), name, None, self._sizes, self._max_pixels)
        reference = f"u-{secrets.token_urlsafe(16)}"
        with self._lock:
            self._uploads[reference] = image
            while len(self._uploads) > MAX_UPLOADS:
                self._uploads.popitem(last=False)
        return reference

    def image(self, reference: str) -> GalleryImage:
        """Return an image; KeyError: there is none of that reference (any more), ImageError: it cannot be decoded."""
        with self._lock:
            if reference in self._uploads:
                self._uploads.move_to_end(reference)
                return self._uploads[reference]
        match = re.fullmatch(r"s(\d{1,4})-(\d{1,9})", reference)
        source, index = (int(match[1]), int(match[2])) if match else (len(self.sources), 0)
        if source >= len(self.sources) or index >= len(self.sources[source].names):
            raise KeyError(reference)
        return self._decoded(source, index)
