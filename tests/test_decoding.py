import io
import os
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from heedmap.data import FolderDataset, TensorDataset, crop_box, load_many, read_image, square, to_tensor
from heedmap.data.decoding import MAX_PIXELS
from heedmap.errors import DataError, ImageError


def save(folder: Path, name: str, image: Image.Image, **options: object) -> Path:
    image.save(folder / name, **options)
    return folder / name


def photograph(width: int, height: int, seed: int = 0) -> Image.Image:
    """A smooth image, such as JPEG is made for."""
    noise = np.random.default_rng(seed).integers(0, 256, (max(2, height // 16), max(2, width // 16), 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def png(header: tuple[int, int, int, int], *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG by hand: (width, height, bits, colour type) and then the chunks."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    every = [(b"IHDR", struct.pack(">IIBBBBB", *header, 0, 0, 0)), *chunks, (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, body) for kind, body in every)


def tiff(width: int, bits: int, photometric: int, samples: bytes) -> bytes:
    """A grey little-endian TIFF of one row by hand."""
    tags = {256: width, 257: 1, 258: bits, 259: 1, 262: photometric, 273: 0, 277: 1, 278: 1, 279: len(samples)}
    tags[273] = 8 + 2 + 12 * len(tags) + 4
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + b"\0\0\0\0" + samples


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes in folders")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(ImageError, match=r"pipe\.jpg: it is a pipe"):
        read_image(tmp_path / "pipe.jpg")


def test_grey_becomes_three_equal_channels(tmp_path: Path) -> None:
    path = save(tmp_path, "a.png", Image.fromarray(np.array([[0, 100, 255]], dtype=np.uint8)))
    assert to_tensor(read_image(path)).tolist() == [[[0, 100, 255]]] * 3


def test_bilevel_becomes_black_and_white(tmp_path: Path) -> None:
    path = save(tmp_path, "a.png", Image.fromarray(np.array([[0, 255]], dtype=np.uint8)).convert("1"))
    assert to_tensor(read_image(path)).tolist() == [[[0, 255]]] * 3


def test_alpha_is_laid_over_white(tmp_path: Path) -> None:
    pixels = np.array([[[10, 20, 30, 255], [10, 20, 30, 0], [0, 0, 0, 128]]], dtype=np.uint8)
    seen = to_tensor(read_image(save(tmp_path, "a.png", Image.fromarray(pixels))))
    assert seen[:, 0, 0].tolist() == [10, 20, 30]
    assert seen[:, 0, 1].tolist() == [255, 255, 255]
    assert seen[:, 0, 2].tolist() == [127, 127, 127]  # 255 * (1 - 128 / 255)


def test_grey_with_alpha_is_laid_over_white(tmp_path: Path) -> None:
    pixels = np.array([[[40, 255], [40, 0]]], dtype=np.uint8)
    assert to_tensor(read_image(save(tmp_path, "a.png", Image.fromarray(pixels, "LA"))))[0].tolist() == [[40, 255]]


@pytest.mark.parametrize("ending", ["png", "gif"])
def test_a_palettes_transparent_entry_becomes_white(tmp_path: Path, ending: str) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([200, 0, 0, 0, 0, 90])
    image.putpixel((1, 0), 1)
    seen = to_tensor(read_image(save(tmp_path, f"a.{ending}", image, transparency=1)))
    assert seen[:, 0, 0].tolist() == [200, 0, 0]
    assert seen[:, 0, 1].tolist() == [255, 255, 255]


def test_a_palettes_alpha_per_entry_is_laid_over_white(tmp_path: Path) -> None:
    image = Image.new("P", (1, 1))
    image.putpalette([0, 0, 0])
    seen = to_tensor(read_image(save(tmp_path, "a.png", image, transparency=bytes([51]))))
    assert seen.flatten().tolist() == [204, 204, 204]  # 255 * (1 - 51 / 255)


def test_adobes_inverted_cmyk_jpeg_shows_its_colours(tmp_path: Path) -> None:
    cyan_ink = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    path = save(tmp_path, "a.jpg", cyan_ink, quality=95)
    assert b"Adobe" in path.read_bytes()
    red, green, blue = to_tensor(read_image(path)).float().mean((1, 2)).tolist()
    assert red < 5
    assert green > 250
    assert blue > 250


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path: Path, ending: str) -> None:
    samples = np.array([[0, 257, 300, 32896, 65535]], dtype=np.uint16)
    path = save(tmp_path, f"a.{ending}", Image.fromarray(samples))
    assert to_tensor(read_image(path))[1].tolist() == [[0, 1, 1, 128, 255]]


def test_sixteen_bit_pgm_is_scaled(tmp_path: Path) -> None:
    path = tmp_path / "a.pgm"
    path.write_bytes(b"P5 2 1 65535\n" + struct.pack(">HH", 257, 65535))
    assert to_tensor(read_image(path))[0].tolist() == [[1, 255]]


def test_the_transparent_level_of_sixteen_bit_grey_becomes_white(tmp_path: Path) -> None:
    row = zlib.compress(struct.pack(">BHHH", 0, 257, 258, 0))
    (tmp_path / "a.png").write_bytes(png((3, 1, 16, 0), (b"tRNS", struct.pack(">H", 258)), (b"IDAT", row)))
    assert to_tensor(read_image(tmp_path / "a.png"))[0].tolist() == [[1, 255, 0]]


def test_sixteen_bit_grey_whose_zero_is_white_is_turned_round(tmp_path: Path) -> None:
    for photometric, seen in ((0, [[255, 254, 0]]), (1, [[0, 1, 255]])):
        (tmp_path / "a.tif").write_bytes(tiff(3, 16, photometric, struct.pack("<HHH", 0, 257, 65535)))
        assert to_tensor(read_image(tmp_path / "a.tif"))[0].tolist() == seen


def test_twelve_bit_grey_is_scaled_from_its_own_white(tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_bytes(tiff(2, 12, 1, bytes([0xFF, 0xF8, 0x08])))  # 0xFFF and 0x808
    assert to_tensor(read_image(tmp_path / "a.tif"))[0].tolist() == [[255, 128]]


def test_floating_point_samples_are_refused_for_want_of_a_white(tmp_path: Path) -> None:
    path = save(tmp_path, "a.tif", Image.fromarray(np.ones((2, 2), dtype=np.float32)))
    with pytest.raises(ImageError, match=r"a\.tif: .*8 or 16 bits"):
        read_image(path)


# EXIF orientation n: where the stored pixels [[1, 2], [3, 4]] belong in the upright image (EXIF 2.32, tag 274).
UPRIGHT = {
    1: [[1, 2], [3, 4]],
    2: [[2, 1], [4, 3]],
    3: [[4, 3], [2, 1]],
    4: [[3, 4], [1, 2]],
    5: [[1, 3], [2, 4]],
    6: [[3, 1], [4, 2]],
    7: [[4, 2], [3, 1]],
    8: [[2, 4], [1, 3]],
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("ending", ["png", "tif"])
def test_every_exif_orientation_is_turned_upright(tmp_path: Path, orientation: int, ending: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.array([[1, 2], [3, 4]], dtype=np.uint8))
    path = save(tmp_path, f"a.{ending}", stored, exif=exif)
    assert to_tensor(read_image(path))[0].tolist() == UPRIGHT[orientation]


def test_a_jpeg_from_a_turned_camera_is_upright_at_draft_size(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the stored top is the upright right side
    stored = np.zeros((64, 96, 3), dtype=np.uint8)
    stored[:32] = 255
    path = save(tmp_path, "a.jpg", Image.fromarray(stored), exif=exif)
    seen = to_tensor(read_image(path, short_side=16)).float()
    assert seen.shape == (3, 24, 16)
    assert seen[:, :, :7].max() < 10
    assert seen[:, :, 9:].min() > 245


@pytest.mark.parametrize(
    "block", [b"Exif\0\0no such byte order", b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x02\0\0\0\x02x\0\0\0"]
)
def test_a_broken_exif_block_leaves_the_image_as_stored(tmp_path: Path, block: bytes) -> None:
    path = save(tmp_path, "a.jpg", photograph(20, 10), exif=block)  # the second has an orientation that is a text
    assert read_image(path).size == (20, 10)


@pytest.mark.parametrize("ending", ["gif", "webp", "png"])
def test_the_first_frame_of_an_animation_is_taken(tmp_path: Path, ending: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    options = {"lossless": True} if ending == "webp" else {}
    path = save(tmp_path, f"a.{ending}", frames[0], save_all=True, append_images=frames[1:], **options)
    assert to_tensor(read_image(path))[:, 0, 0].tolist() == [255, 0, 0]


def test_a_single_pixel_is_an_image(tmp_path: Path) -> None:
    path = save(tmp_path, "a.png", Image.new("RGB", (1, 1), (7, 8, 9)))
    assert to_tensor(square(read_image(path, short_side=4), 4)).flatten(1).unique(dim=1).tolist() == [[7], [8], [9]]


def test_a_stream_is_read_like_a_file() -> None:
    stream = io.BytesIO()
    Image.new("RGB", (2, 3), "blue").save(stream, "PNG")
    assert read_image(stream).size == (2, 3)


def test_an_empty_file_is_named_as_such(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    with pytest.raises(ImageError, match=r"a\.jpg: .*0 bytes"):
        read_image(tmp_path / "a.jpg")
    with pytest.raises(ImageError, match=r"image: .*empty"):
        read_image(io.BytesIO())


def test_text_that_is_called_a_jpeg_is_no_image(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("dear diary")
    with pytest.raises(ImageError, match=r"a\.jpg: it is not an image"):
        read_image(tmp_path / "a.jpg")


def test_postscript_is_never_given_to_ghostscript(tmp_path: Path) -> None:
    path = save(tmp_path, "a.eps", photograph(8, 8)).rename(tmp_path / "a.jpg")
    with pytest.raises(ImageError, match="not an image"):
        read_image(path)


@pytest.mark.parametrize("short_side", [None, 8])
@pytest.mark.parametrize("ending", ["jpg", "png", "webp"])
def test_a_truncated_file_is_named_with_the_reason(tmp_path: Path, ending: str, short_side: int | None) -> None:
    path = save(tmp_path, f"a.{ending}", photograph(256, 256))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ImageError, match=rf"a\.{ending}: it is (damaged|not an image)"):
        read_image(path, short_side=short_side)


@pytest.mark.parametrize("side", [12_000, 200_000])
def test_a_decompression_bomb_is_refused_by_its_header(tmp_path: Path, side: int) -> None:
    assert side**2 > MAX_PIXELS
    (tmp_path / "a.png").write_bytes(png((side, side, 8, 2), (b"IDAT", zlib.compress(b"\0" * 64))))
    with pytest.raises(ImageError, match=r"a\.png: .* 100 million"):
        read_image(tmp_path / "a.png")


def test_a_missing_file_and_a_folder_are_distinguished(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"gone\.jpg: .*no such file"):
        read_image(tmp_path / "gone.jpg")
    with pytest.raises(ImageError, match="folder"):
        read_image(tmp_path)


def test_pillows_warnings_neither_leak_nor_stop_an_image_between_the_guards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 60)  # Pillow warns above this, and refuses above twice this
    path = save(tmp_path, "a.png", Image.new("RGB", (10, 10)))
    before = list(warnings.filters)
    with ThreadPoolExecutor(4) as pool:
        sizes = {image.size for image in pool.map(read_image, [path] * 64)}
    assert sizes == {(10, 10)}
    assert warnings.filters == before


def test_a_draft_is_never_smaller_than_requested_and_close_to_the_full_image(tmp_path: Path) -> None:
    path = save(tmp_path, "a.jpg", photograph(500, 400), quality=92)
    draft = read_image(path, short_side=90)
    assert draft.size == (125, 100)
    near, full = (to_tensor(square(image, 90)).float() for image in (draft, read_image(path)))
    assert (near - full).abs().mean() < 2.0  # grey levels of 255; half a pixel off makes 10


def test_the_square_is_what_the_crop_box_says(tmp_path: Path) -> None:
    image = photograph(31, 20)
    assert crop_box(31, 20) == (5, 0, 25, 20)
    assert crop_box(20, 31) == (0, 5, 20, 25)
    torch.testing.assert_close(to_tensor(square(image, 20)), to_tensor(image.crop(crop_box(31, 20))), rtol=0, atol=0)


def test_the_square_is_antialiased() -> None:
    stripes = Image.fromarray(np.tile(np.array([0, 255], dtype=np.uint8), (64, 32))).convert("RGB")
    seen = to_tensor(square(stripes, 8)).float()
    assert (seen - 127.5).abs().max() < 10


def test_folder_images_load_and_subset_by_place(tmp_path: Path) -> None:
    for number in range(3):
        save(tmp_path, f"{number}.png", Image.new("RGB", (6, 4), (number, 0, 0)))
    images = FolderDataset(tmp_path, ["0.png", "1.png", "2.png"], torch.tensor([0, 1, 0]), ["a", "b"])
    part = images.subset([2, 1])
    assert part.names == ("2.png", "1.png")
    assert part.labels.tolist() == [0, 1]
    assert part.load(0, 5).shape == (3, 5, 5)
    assert part.load(0, 5)[0].unique().tolist() == [2]
    assert part.load(0, 5).dtype == torch.uint8


def test_tensor_images_share_their_pixels_between_subsets() -> None:
    images = torch.arange(4, dtype=torch.uint8)[:, None, None, None].expand(4, 3, 2, 2).contiguous()
    boxes = torch.rand(4, 4)
    dataset = TensorDataset(images, torch.tensor([0, 0, 1, 1]), ["a", "b"], list("wxyz"), boxes)
    part = dataset.subset([3, 0]).subset(torch.tensor([1, 0]))
    assert part.images.data_ptr() == images.data_ptr()
    assert part.names == ("w", "z")
    assert part.load(1, 2).unique().tolist() == [3]
    assert part.boxes is not None
    assert torch.equal(part.boxes, boxes[[0, 3]])


@pytest.mark.parametrize("size", [12, 50])
def test_tensor_images_of_another_size_are_resized_as_pillow_does(size: int) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8))
    images = TensorDataset(to_tensor(image)[None], torch.tensor([0]), ["a"], ["0"])
    difference = images.load(0, size).float() - to_tensor(square(image, size)).float()
    assert difference.abs().max() <= 1


def test_tensor_images_refuse_what_does_not_fit() -> None:
    images = torch.zeros(2, 3, 4, 5, dtype=torch.uint8)
    with pytest.raises(DataError, match="uint8"):
        TensorDataset(images.float(), torch.tensor([0, 0]), ["a"], ["0", "1"])
    with pytest.raises(DataError, match=r"labels must lie in 0 \.\. 0"):
        TensorDataset(images, torch.tensor([0, 1]), ["a"], ["0", "1"])
    with pytest.raises(DataError, match="1 names do not fit 2 labels"):
        TensorDataset(images, torch.tensor([0, 0]), ["a"], ["0"])
    with pytest.raises(DataError, match="square"):
        TensorDataset(images, torch.tensor([0, 0]), ["a"], ["0", "1"], boxes=torch.zeros(2, 4))
    with pytest.raises(DataError, match="labels must be int64"):
        FolderDataset("x", ["a.png"], torch.tensor([0, 1]), ["a"])


def test_many_images_come_in_order_with_failures_named(tmp_path: Path) -> None:
    for number in range(5):
        save(tmp_path, f"{number}.png", Image.new("RGB", (9, 9), (number, 0, 0)))
    (tmp_path / "3.png").write_bytes(b"")
    dataset = FolderDataset(tmp_path, [f"{n}.png" for n in range(5)], torch.zeros(5, dtype=torch.int64), ["a"])
    images, failures = load_many(dataset, [4, 3, 0], 7, workers=2)
    assert images.shape == (3, 3, 7, 7)
    assert images[:, 0, 3, 3].tolist() == [4, 0, 0]
    assert failures == [(3, "the file is empty (0 bytes)")]


def test_many_images_in_memory_equal_each_one_loaded() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (300, 3, 6, 6), dtype=torch.uint8, generator=generator)
    dataset = TensorDataset(images, torch.zeros(300, dtype=torch.int64), ["a"], [str(n) for n in range(300)])
    many, failures = load_many(dataset, range(299, -1, -1), 4, workers=1)
    assert failures == []
    assert torch.equal(many[7], dataset.load(292, 4))
    assert load_many(dataset, [], 4, workers=1)[0].shape == (0, 3, 4, 4)
