"""Digit scenes: one handwritten digit somewhere among clutter, with its box and mask known exactly.

The embedded dataset: it is drawn from the real digits that come with scikit-learn (UCI "Optical Recognition of
Handwritten Digits", 1,797 digits of 8x8 cells), so it needs no download.

A scene is a 64x64 RGB image. Its ground is smooth coloured noise with fine grain; on it lie fragments cut from other
digits, all smaller than half a digit, rotated and mirrored, in inks of the same range of contrast as the digit's (about
half of them in its very ink), so that neither brightness nor colour gives the digit away. One whole digit is painted
over them. Train and test share no digit, no fragment and, as far as the file's order shows, no writer.
"""

from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import grid_sample, interpolate, max_pool2d

from heedmap.data.dataset import Splits, TensorDataset
from heedmap.errors import DataError

Part = Literal["train", "test"]
Floats = NDArray[np.float32]

CLASSES = tuple("0123456789")
FIRST_TEST_DIGIT = 1287
"""Writers wrote 0..9 0..9 first, so their blocks show in the labels: 10 before this one, 4 from it on (28 %)."""

CHUNK = 250  # scenes drawn together, each chunk with its own seed, so a scene does not depend on how many are drawn
FRAGMENTS = 12  # at most, per scene
SCENES = {"digit-scenes": FRAGMENTS, "digit-scenes-8": 8, "digit-scenes-4": 4, "digit-scenes-0": 0}
"""Name -> fragments per scene at most: the set, and the same with less clutter."""

DIGIT_TILE = 48  # a 32 px digit turned by 12 degrees needs 39, and the cell's soft edge a little more
FRAGMENT_TILE = 20
CELLS = 10  # a digit's 8x8 cells with an empty rim, so that strokes end softly
LUMINANCE = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # Rec. 601


class _Digits(NamedTuple):
    cells: Tensor  # (D, 10, 10) float32 ink in 0..1
    labels: Tensor  # (D,) int64
    ink: list[Floats]  # for each digit the centres of its inked cells, (n, 2) x, y in cells from the digit's middle


@lru_cache(maxsize=2)
def _digits(split: Part) -> _Digits:
    """Load the digits of one part, padded to 10x10 cells."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    part = slice(0, FIRST_TEST_DIGIT) if split == "train" else slice(FIRST_TEST_DIGIT, None)
    cells = np.pad(bunch.images[part].astype(np.float32) / 16, ((0, 0), (1, 1), (1, 1)))
    middle = (CELLS - 1) / 2
    ink = [np.argwhere(digit > 0.5)[:, ::-1].astype(np.float32) - middle for digit in cells]
    return _Digits(torch.from_numpy(cells), torch.from_numpy(bunch.target[part].astype(np.int64)), ink)


def _strokes(cells: Tensor, tile: int, centre: Floats, side: Floats, turn: Floats, mirror: Floats) -> Tensor:
    """Draw digits (T, 10, 10) into square tiles: (T, tile, tile) ink in 0..1, with a contrast curve for sharp strokes.

    Args:
        centre: (T, 2) the point of the digit, x and y in cells from its middle, at the middle of the tile.
        side: (T,) pixels that the digit's 8 cells would span.
        turn, mirror: (T,) radians, and -1 where the digit is mirrored, else 1.
    """
    step = 8.0 / side  # cells per pixel
    cos, sin = np.cos(turn) * step, np.sin(turn) * step
    axis = np.arange(tile, dtype=np.float32) - (tile - 1) / 2
    x, y = axis[None, None, :], axis[None, :, None]
    cell_x = (cos[:, None, None] * x - sin[:, None, None] * y) * mirror[:, None, None] + centre[:, 0, None, None]
    cell_y = sin[:, None, None] * x + cos[:, None, None] * y + centre[:, 1, None, None]
    grid = torch.from_numpy(np.stack([cell_x, cell_y], axis=-1).astype(np.float32) * (2 / CELLS))
    ink = grid_sample(cells[:, None], grid, mode="bicubic", padding_mode="zeros", align_corners=False)[:, 0]
    edge = ((ink - 0.3) / 0.4).clamp_(0, 1)
    return edge * edge * (3 - 2 * edge)


def _inks(rng: np.random.Generator, ground: Floats, count: int) -> Floats:
    """Draw ``count`` inks for each ground (S, 3): (S, count, 3) in 0..1, luminance 0.32 to 0.6 away from its own."""
    scenes = len(ground)
    base = (ground @ LUMINANCE)[:, None]
    gap = rng.uniform(0.32, 0.6, (scenes, count)).astype(np.float32)
    up = rng.random((scenes, count)) < 0.5
    up = np.where(base + gap > 0.97, False, np.where(base - gap < 0.03, True, up))
    luminance = np.where(up, np.minimum(base + gap, 0.97), np.maximum(base - gap, 0.03))
    return _coloured(rng, luminance.astype(np.float32))


def _coloured(rng: np.random.Generator, luminance: Floats) -> Floats:
    """Return random colours of these luminances, of random saturation within the range 0..1: (...) -> (..., 3)."""
    chroma = rng.normal(size=(*luminance.shape, 3)).astype(np.float32)
    chroma -= (chroma @ LUMINANCE)[..., None]
    room = np.where(chroma > 0, 1 - luminance[..., None], luminance[..., None]) / np.maximum(np.abs(chroma), 1e-6)
    vivid = rng.random(luminance.shape).astype(np.float32)[..., None]
    return luminance[..., None] + chroma * room.min(-1, keepdims=True) * vivid


@lru_cache(maxsize=4)
def _upsampling(coarse: int, size: int) -> Floats:
    """Return the matrix (size, coarse) of bicubic upsampling along an axis; two products beat the 2-D operator."""
    column = torch.eye(coarse)[None, None]
    return interpolate(column, (size, coarse), mode="bicubic", align_corners=False)[0, 0].numpy()


def _grounds(rng: np.random.Generator, scenes: int, size: int) -> tuple[Floats, Floats]:
    """Draw textured grounds (S, 3, size, size), and the base colours (S, 3) that they vary around."""
    base = _coloured(rng, rng.uniform(0.15, 0.85, scenes).astype(np.float32))
    ground = np.broadcast_to(base[:, :, None, None], (scenes, 3, size, size)).copy()
    for coarse, strength in ((4, 0.07), (12, 0.04)):
        noise = rng.normal(0, strength, (scenes, 3, coarse, coarse)).astype(np.float32)
        ground += _upsampling(coarse, size) @ noise @ _upsampling(coarse, size).T
    grain = rng.integers(0, 256, (scenes, 1, size, size), dtype=np.uint8).astype(np.float32) / 255 - 0.5
    ground += grain * rng.uniform(0.03, 0.14, (scenes, 1, 1, 1)).astype(np.float32)
    return ground, base


def _paint(canvas: Floats, ink: Floats, colour: Floats, left: NDArray[np.int64], top: NDArray[np.int64]) -> None:
    """Paint one tile of ink (S, t, t) in ``colour`` (S, C) onto each canvas (S, C, h, w), at its corner."""
    tile = ink.shape[-1]
    windows = np.lib.stride_tricks.sliding_window_view(canvas, (tile, tile), axis=(2, 3), writeable=True)
    scene = np.arange(len(canvas))
    under = windows[scene, :, top, left]  # (S, C, t, t)
    windows[scene, :, top, left] = under + ink[:, None] * (colour[:, :, None, None] - under)


def _scatter_fragments(
    rng: np.random.Generator, canvas: Floats, rim: int, digits: _Digits, inks: Floats, side: Floats
) -> None:
    """Paint clutter onto the canvases, which reach ``rim`` pixels over the image on every side."""
    scenes, size = len(canvas), canvas.shape[-1] - 2 * rim
    axis = np.arange(FRAGMENT_TILE, dtype=np.float32) - (FRAGMENT_TILE - 1) / 2
    for place in range(inks.shape[1] - 1):  # the last ink is the digit's
        which = rng.integers(0, len(digits.ink), scenes)
        pick = rng.random(scenes)
        centre = np.stack([digits.ink[d][int(p * len(digits.ink[d]))] for d, p in zip(which, pick, strict=True)])
        scale = side * rng.uniform(0.85, 1.15, scenes).astype(np.float32)
        turn = rng.uniform(0, 2 * np.pi, scenes).astype(np.float32)
        mirror = rng.choice(np.array([-1, 1], dtype=np.float32), scenes)
        ink = _strokes(digits.cells[torch.from_numpy(which)], FRAGMENT_TILE, centre, scale, turn, mirror).numpy()
        # the scissors: a rounded patch of 3 to 4.4 of the digit's 8 cells, so never as much as half a digit's area
        half = (side * rng.uniform(0.17, 0.26, scenes).astype(np.float32))[:, None]
        cut = np.clip(half - np.abs(axis) + 0.5, 0, 1)
        shown = cut[:, :, None] * cut[:, None, :] * (rng.random(scenes) < 0.85)[:, None, None]
        left, top = rim + rng.integers(0, size, (2, scenes)) - FRAGMENT_TILE // 2
        _paint(canvas, (ink * shown).astype(np.float32), inks[:, place], left, top)


def _draw_chunk(split: Part, seed: int, chunk: int, size: int, fragments: int) -> tuple[Tensor, Tensor, Tensor]:
    """Draw one chunk of scenes: uint8 (S, 3, size, size), labels (S,), masks (S, size, size)."""
    digits = _digits(split)
    rng = np.random.default_rng([seed, 0 if split == "train" else 1, size, chunk])
    ground, base = _grounds(rng, CHUNK, size)
    side = (rng.uniform(20, 32, CHUNK) * size / 64).astype(np.float32)
    inks = _inks(rng, base, fragments + 1)
    own = inks[:, -1:]
    inks[:, :-1] = np.where(rng.random((CHUNK, fragments, 1)) < 0.5, own, inks[:, :-1])
    which = torch.from_numpy(rng.integers(0, len(digits.labels), CHUNK))
    digit = _place_digits(rng, digits.cells[which], side, size)
    rim = FRAGMENT_TILE
    canvas = np.pad(ground, ((0, 0), (0, 0), (rim, rim), (rim, rim)))
    _scatter_fragments(rng, canvas, rim, digits, inks, side)
    cluttered = canvas[:, :, rim : rim + size, rim : rim + size]
    # a hair of bare ground around the strokes: clutter in the digit's own ink could otherwise turn a 3 into an 8
    near = max_pool2d(max_pool2d(digit, (5, 1), 1, (2, 0)), (1, 5), 1, (0, 2)).numpy()
    scene = cluttered + near * (ground - cluttered)
    scene += digit.numpy() * (own[:, 0, :, None, None] - scene)
    images = np.clip(np.rint(scene * 255), 0, 255).astype(np.uint8)
    return torch.from_numpy(images), digits.labels[which], digit[:, 0] > 0.5


def _place_digits(rng: np.random.Generator, cells: Tensor, side: Floats, size: int) -> Tensor:
    """Draw each digit's ink (S, 1, size, size) in 0..1, turned by up to 12 degrees, anywhere wholly inside."""
    scenes, rim = len(cells), DIGIT_TILE
    turn = np.radians(rng.uniform(-12, 12, scenes)).astype(np.float32)
    still, upright = np.zeros((scenes, 2), np.float32), np.ones(scenes, np.float32)
    ink = _strokes(cells, DIGIT_TILE, still, side, turn, upright).numpy()
    left = _corner(rng, ink.max(1) > 0.02, size) + rim
    top = _corner(rng, ink.max(2) > 0.02, size) + rim
    sheet = np.zeros((scenes, 1, size + 2 * rim, size + 2 * rim), np.float32)
    _paint(sheet, ink, np.ones((scenes, 1), np.float32), left, top)
    return torch.from_numpy(sheet[:, :, rim : rim + size, rim : rim + size].copy())


def _corner(rng: np.random.Generator, inked: NDArray[np.bool_], size: int) -> NDArray[np.int64]:
    """Draw each tile's corner so that its inked span (S, tile) lies anywhere in 0..size with equal chance."""
    first = inked.argmax(1)
    last = inked.shape[1] - 1 - inked[:, ::-1].argmax(1)
    return rng.integers(0, size - (last - first)) - first


def _boxes(masks: Tensor) -> Tensor:
    """Return tight boxes (N, 4) [left, top, right, bottom] in fractions of the image for masks (N, H, W)."""
    columns, rows = masks.any(1).to(torch.uint8), masks.any(2).to(torch.uint8)
    left, top = columns.argmax(1), rows.argmax(1)
    right = columns.shape[1] - columns.flip(1).argmax(1)
    bottom = rows.shape[1] - rows.flip(1).argmax(1)
    height, width = masks.shape[1:]
    return torch.stack([left / width, top / height, right / width, bottom / height], dim=1)


def digit_scenes(split: Part, count: int, seed: int = 0, size: int = 64, fragments: int = FRAGMENTS) -> TensorDataset:
    """Draw ``count`` scenes of one part; the same split, seed, size and index give the same scene, whatever the count.

    Images have classes ``0`` to ``9``, boxes tight around the mask, and masks (where the ink covers more than half).
    They take about 14 MB for each 1,000 scenes of 64 px.

    Args:
        split: ``train`` or ``test``; the two share no digit.
        count, seed: at least 1, and 0 or more.
        size: side in pixels, 48 to 64; the digit's side is 20 to 32 pixels at 64 and in proportion below.
        fragments: pieces of clutter per scene at most, 0 to 12; each is painted with a probability of 0.85.

    Raises:
        DataError: for a split, count, seed or size out of range.
    """
    if split not in ("train", "test"):
        raise DataError(f"Digit scenes have the parts 'train' and 'test', not {split!r}.")
    if count < 1 or seed < 0 or not 48 <= size <= 64:
        raise DataError(f"Digit scenes need count >= 1, seed >= 0, size 48 to 64; got {count}, {seed}, {size}.")
    if not 0 <= fragments <= FRAGMENTS:
        raise DataError(f"Digit scenes hold 0 to {FRAGMENTS} fragments, not {fragments}.")
    chunks = [_draw_chunk(split, seed, chunk, size, fragments) for chunk in range(-(-count // CHUNK))]
    images, labels, masks = (torch.cat(parts)[:count] for parts in zip(*chunks, strict=True))
    names = tuple(f"{split}/{index:06d}" for index in range(count))
    return TensorDataset(images, labels, CLASSES, names, boxes=_boxes(masks), masks=masks)


def open_digit_scenes(
    train_count: int = 12000, test_count: int = 2000, seed: int = 0, name: str = "digit-scenes"
) -> Splits:
    """Draw one of ``SCENES``: train and test parts, not flippable (a mirrored digit is another sign)."""
    train = digit_scenes("train", train_count, seed, fragments=SCENES[name])
    test = digit_scenes("test", test_count, seed, fragments=SCENES[name])
    notes = ("Scenes drawn from scikit-learn's handwritten digits; train and test share no digit and no writer.",)
    return Splits(name, CLASSES, train, None, test, notes=notes, flippable=False)
