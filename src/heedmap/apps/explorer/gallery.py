"""Which images the explorer may show, and what is kept of each: the network's view of it and one to look at.

A request names an image by a short reference (``s0-12``: the 13th of the first source; ``u-...``: an upload), never by
a path, so there is no path in which to climb. What a link in a folder points to outside that folder is left out when
the folder is listed, and refused when it was put there afterwards.
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

import torch
from PIL import Image
from torch import Tensor

from heedmap.data import FolderDataset, ImageDataset
from heedmap.errors import DataError, ImageError
from heedmap.inference.listing import expand_images
from heedmap.inference.reading import decode

VIEW = 512
"""Side in pixels of the square view that the page shows."""

THUMBNAIL = 112
MOST_UPLOADS = 200  # about 1 MB each; the page sends an image again when its upload was let go
MOST_LISTED = 20_000
_KEPT = 96  # images of the folders that stay decoded
_DECODERS = 2  # an image of MAX_PIXELS takes up to 1 GB while it is decoded


@dataclass(frozen=True)
class Seen:
    """A decoded image.

    Attributes:
        name: as the page calls it.
        label: its class, where it is known.
        images: image_size -> uint8 (3, S, S), what a network of that size sees.
        view: RGB, ``VIEW`` x ``VIEW``: the same square to look at.
        box: (left, top, right, bottom) of the object as shares of the square, where it is known.
    """

    name: str
    label: str | None
    images: dict[int, Tensor]
    view: Image.Image
    box: tuple[float, float, float, float] | None = None


class Source:
    """Images that can be walked through: a folder that was named, or a run's test part.

    Attributes:
        title: for the page.
        names: one an image.
        labels: the class of each, None where it is not known.
        notes: what was left out, in sentences.
        part: the images as data, where they are a test part.
    """

    def __init__(self, title: str, images: ImageDataset | Folder, notes: Sequence[str] = ()) -> None:
        self.title, self.notes = title, tuple(notes)
        self.part = None if isinstance(images, Folder) else images
        self._images = images
        self.names = images.names[:MOST_LISTED]
        if isinstance(images, Folder):
            self.labels: tuple[str | None, ...] = images.labels[:MOST_LISTED]
        else:
            self.labels = tuple(images.classes[label] for label in images.labels[:MOST_LISTED].tolist())
        if len(images.names) > MOST_LISTED:
            self.notes += (f"{title}: the first {MOST_LISTED:,} of {len(images.names):,} images are shown.",)

    def see(self, place: int, sizes: Iterable[int]) -> Seen:
        """Decode an image.

        Raises:
            ImageError: it cannot be decoded, or lies outside the folder by now.
        """
        if isinstance(self._images, Folder):
            return decoded(self._images.path(place), self.names[place], self.labels[place], sizes)
        if isinstance(self._images, FolderDataset):
            path = confined(self._images.root, self.names[place])
            return decoded(path, self.names[place], self.labels[place], sizes)
        images = {size: self._images.load(place, size) for size in sizes}
        view = Image.fromarray(self._images.load(place, VIEW).permute(1, 2, 0).numpy())
        box = None
        if self._images.boxes is not None:
            left, top, right, bottom = self._images.boxes[place].tolist()
            box = (left, top, right, bottom)
        return Seen(self.names[place], self.labels[place], images, view, box)


class Folder:
    """The images of a folder or a file that was named, without those that a link brings in from elsewhere.

    Attributes:
        names: paths relative to the folder.
        labels: the name of each image's folder where that is a class, else None.
        left_out: how many links lead out of the folder.

    Raises:
        DataError: no such folder, or no image in it.
    """

    def __init__(self, path: str | Path, classes: Iterable[str]) -> None:
        named = Path(path).expanduser()
        files = expand_images(str(path))
        self.root = (named if named.is_dir() else files[0].parent).resolve()
        inside = [file for file in files if file.resolve().is_relative_to(self.root)]
        self.left_out = len(files) - len(inside)
        if not inside:
            raise DataError(f"{path}: every image in it is a link to somewhere else; name the folder they lie in.")
        known = set(classes)
        self.names = tuple(file.resolve().relative_to(self.root).as_posix() for file in inside)
        self.labels = tuple(file.parent.name if file.parent.name in known else None for file in inside)

    def path(self, place: int) -> Path:
        """Return the file of one image; see :func:`confined`."""
        return confined(self.root, self.names[place])


def confined(root: Path, name: str) -> Path:
    """Return the file ``name`` under ``root``.

    Raises:
        ImageError: it leads out of the folder, by ``..`` or by a link.
    """
    path = (root / name).resolve()
    if not path.is_relative_to(root.resolve()):
        raise ImageError(f"{name}: it leads out of the folder that was opened, and is not shown.")
    return path


class _Named(io.BytesIO):
    """Bytes with a name, which messages about the image begin with."""

    def __init__(self, content: bytes, name: str) -> None:
        super().__init__(content)
        self.name = name


_decoding = threading.BoundedSemaphore(_DECODERS)


def decoded(file: Path | _Named, name: str, label: str | None, sizes: Iterable[int]) -> Seen:
    """Decode an image for networks of several sizes, each exactly as in training, and to look at.

    Raises:
        ImageError: it cannot be decoded; the message begins with its name.
    """
    with _decoding:
        try:
            images = {size: torch.from_numpy(decode(file, size).pixels) for size in sizes}
            view = decode(file, VIEW, VIEW).view
            assert view is not None
            return Seen(name, label, images, view)
        except ImageError as error:
            raise ImageError(f"{name}: {str(error).removeprefix(f'{file}: ').removeprefix(f'{name}: ')}") from None


class Gallery:
    """All that can be shown, by reference.

    Args:
        sources: what can be walked through.
        sizes: the image sizes of the networks.
    """

    def __init__(self, sources: Sequence[Source], sizes: Iterable[int]) -> None:
        self.sources = tuple(sources)
        self.sizes = tuple(sorted(set(sizes)))
        self._uploads: OrderedDict[str, Seen] = OrderedDict()
        self._lock = threading.Lock()
        self._seen = lru_cache(maxsize=_KEPT)(lambda source, place: self.sources[source].see(place, self.sizes))

    def upload(self, content: bytes, name: str) -> str:
        """Keep an image that somebody sent; returns its reference, which cannot be guessed.

        Raises:
            ImageError: it cannot be decoded.
        """
        name = re.sub(r"[\x00-\x1f\x7f]", " ", name)[-120:].strip() or "image"
        seen = decoded(_Named(content, name), name, None, self.sizes)
        reference = f"u-{secrets.token_urlsafe(16)}"
        with self._lock:
            self._uploads[reference] = seen
            while len(self._uploads) > MOST_UPLOADS:
                self._uploads.popitem(last=False)
        return reference

    def see(self, reference: str) -> Seen:
        """Return an image.

        Raises:
            KeyError: there is none of that reference, or the upload was let go.
            ImageError: it cannot be decoded.
        """
        with self._lock:
            if reference in self._uploads:
                self._uploads.move_to_end(reference)
                return self._uploads[reference]
        found = re.fullmatch(r"s(\d{1,4})-(\d{1,9})", reference)
        if found is None:
            raise KeyError(reference)
        source, place = int(found[1]), int(found[2])
        if source >= len(self.sources) or place >= len(self.sources[source].names):
            raise KeyError(reference)
        return self._seen(source, place)
