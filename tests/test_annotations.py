"""Annotations as people have them: the same two objects in every format, matched, cropped, refused."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco

from heedmap.data.annotations.annotations import AnnotationOptions, annotations_of, read_annotations
from heedmap.data.annotations.matching import match
from heedmap.data.dataset import FolderDataset
from heedmap.data.digit_scenes import digit_scenes
from heedmap.data.masks import OutlineMask, RunLengths, kind_of
from heedmap.errors import DataError, OptionError

WIDTH, HEIGHT = 40, 20  # the square view is columns 10 to 30
BOX = (12, 4, 22, 14)  # left, top, right, bottom in pixels, right and bottom not included
SHARES = torch.tensor([[0.1, 0.2, 0.6, 0.7]], dtype=torch.float64)


@pytest.fixture
def images(tmp_path):
    names = ["cat/1.jpg", "cat/2.jpg", "dog/1.jpg"]
    for name in names:
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (WIDTH, HEIGHT), "grey").save(tmp_path / "images" / name)
    return FolderDataset(tmp_path / "images", names, torch.tensor([0, 0, 1]), ("cat", "dog"))


def object_pixels():
    pixels = np.zeros((HEIGHT, WIDTH), np.uint8)
    pixels[BOX[1] : BOX[3], BOX[0] : BOX[2]] = 1
    return pixels


def write_masks(folder, pixels, palette=False, names=("cat/1.png", "cat/2.png", "dog/1.png")):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(pixels)
        if palette:
            image = image.convert("P")
            image.putdata(pixels.ravel().tolist())
            image.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0] + [9] * (253 * 3))
        image.save(folder / name)
    return folder


def as_masks(folder):
    return write_masks(folder / "m", object_pixels() * 255)


def as_masks_of_ones(folder):
    return write_masks(folder / "m", object_pixels())


def as_indices_with_a_void_edge(folder):
    pixels = object_pixels()
    pixels[0] = 255
    return write_masks(folder / "m", pixels, palette=True)


def as_colours(folder):
    pixels = object_pixels()[..., None] * np.array([128, 0, 0], np.uint8)
    pixels[0] = (224, 224, 192)
    return write_masks(folder / "m", pixels)


def as_coco(folder, **changes):
    left, top, right, bottom = BOX
    annotation = {"bbox": [left, top, right - left, bottom - top], "category_id": 7, **changes}
    names = ["cat/1.jpg", "cat/2.jpg", "dog/1.jpg"]
    content = {
        "images": [{"id": i, "file_name": name, "width": WIDTH, "height": HEIGHT} for i, name in enumerate(names)],
        "annotations": [{"id": i, "image_id": i, **annotation} for i in range(3)],
        "categories": [{"id": 7, "name": "cat"}],
    }
    (folder / "coco.json").write_text(json.dumps(content))
    return folder / "coco.json"


def as_coco_polygons(folder):
    left, top, right, bottom = BOX
    return as_coco(folder, segmentation=[[left, top, right, top, right, bottom, left, bottom]])


def run_lengths():
    flat = object_pixels().T.ravel()
    ends = np.flatnonzero(np.diff(flat, prepend=0)).tolist()
    return np.diff([0, *ends, flat.size]).tolist()


def as_coco_run_lengths(folder):
    return as_coco(folder, segmentation={"counts": run_lengths(), "size": [HEIGHT, WIDTH]})


def as_voc(folder):
    left, top, right, bottom = BOX
    for name in ("cat/1.xml", "cat/2.xml", "dog/1.xml"):
        (folder / "x" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "x" / name).write_text(
            f"<annotation><size><width>{WIDTH}</width><height>{HEIGHT}</height></size><object><name>cat</name><bndbox>"
            f"<xmin>{left + 1}</xmin><ymin>{top + 1}</ymin><xmax>{right}</xmax><ymax>{bottom}</ymax></bndbox></object>"
            "</annotation>"
        )
    return folder / "x"


def as_yolo(folder, line=None):
    left, top, right, bottom = (value / side for value, side in zip(BOX, (WIDTH, HEIGHT) * 2, strict=True))
    line = line or f"0 {(left + right) / 2} {(top + bottom) / 2} {right - left} {bottom - top}"
    for name in ("cat/1.txt", "cat/2.txt", "dog/1.txt"):
        (folder / "y" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "y" / name).write_text(line + "\n")
    (folder / "classes.txt").write_text("cat\ndog\n")
    return folder / "y"


def as_yolo_polygons(folder):
    left, top, right, bottom = (value / side for value, side in zip(BOX, (WIDTH, HEIGHT) * 2, strict=True))
    return as_yolo(folder, f"0 {left} {top} {right} {top} {right} {bottom} {left} {bottom}")


def as_csv(folder, head="path,left,top,right,bottom,class\n", row="{},12,4,22,14,cat\n"):
    names = ("cat/1.jpg", "cat/2.jpg", "dog/1.jpg")
    (folder / "boxes.csv").write_text(head + "".join(row.format(name) for name in names))
    return folder / "boxes.csv"


def as_csv_without_head(folder):
    return as_csv(folder, head="", row="{},12,4,22,14\n")


def as_csv_of_sides(folder):
    return as_csv(folder, head="filename,x,y,w,h\n", row="{},12,4,10,10\n")


def as_csv_of_fractions(folder):
    return as_csv(folder, row="{},0.3,0.2,0.55,0.7,cat\n")


WRITERS = [
    (as_masks, True),
    (as_masks_of_ones, True),
    (as_indices_with_a_void_edge, True),
    (as_colours, True),
    (as_coco, False),
    (as_coco_polygons, True),
    (as_coco_run_lengths, True),
    (as_voc, False),
    (as_yolo, False),
    (as_yolo_polygons, True),
    (as_csv, False),
    (as_csv_without_head, False),
    (as_csv_of_sides, False),
    (as_csv_of_fractions, False),
]


@pytest.mark.parametrize(("write", "has_mask"), WRITERS, ids=lambda value: getattr(value, "__name__", None))
def test_every_format_gives_the_same_boxes_and_masks_in_the_square_view(write, has_mask, images, tmp_path):
    found = read_annotations(write(tmp_path), images)
    assert found.names == images.names
    assert found.known.all()
    assert found.objects.tolist() == [1, 1, 1]
    for row in range(3):
        assert torch.allclose(found.boxes[row], SHARES)
        assert (found.masks[row] is not None) == has_mask
        region = found.region(row, 20)
        expected = torch.from_numpy(object_pixels()[:, 10:30].copy())
        assert torch.equal(region == 1, expected == 1)
        assert (region == 2).any() == (write in (as_indices_with_a_void_edge, as_colours))


def test_packed_run_lengths_are_read():
    """The text was packed by hand, by the rule in the docstring: 3, 2, 4, 1, 6 in groups of five bits."""
    expected = np.repeat([False, True, False, True, False], (3, 2, 4, 1, 6)).reshape(4, 4).T
    assert np.array_equal(RunLengths.read("324O2", (4, 4)).pixels(), expected)


@pytest.mark.parametrize(
    "counts",
    [[3, 2], [3, 20], [-1, 17], [], "32", "", "o", "324O", "324O9", "0`0`", "\xff", "é"],
    ids=lambda counts: ascii(counts),
)
def test_run_lengths_that_do_not_fill_the_image_are_refused(counts):
    """pycocotools would leave the rest of the mask as the memory was, or read beyond the end of the text."""
    with pytest.raises(ValueError, match="4 x 4"):
        RunLengths.read(counts, (4, 4))


def test_run_lengths_of_a_single_pixel_and_of_impossible_sizes():
    assert RunLengths.read([0, 1], (1, 1)).pixels().tolist() == [[True]]
    for size in ((0, 4), (-4, -4), (10**6, 10**6)):
        with pytest.raises(ValueError, match=str(size[0])):
            RunLengths.read([0, 1], size)


def test_polygons_cover_the_pixels_that_cocos_tools_give_them_however_far_they_reach():
    triangle, points, far = (0.1, 0.1, 0.6, 0.1, 0.1, 0.9), (0.2, 0.2, 0.3, 0.3), (-1e9, -1e9, 1e9, -1e9, 1e9, 1e9)
    (encoded,) = coco.frPyObjects([[20 * value for value in triangle]], 20, 20)
    expected = coco.decode(encoded)
    assert np.array_equal(OutlineMask(((triangle, points),), (), (20, 20)).draw(20).numpy(), expected)
    assert not OutlineMask(((points,), ()), (), (20, 20)).draw(20).any()
    assert OutlineMask(((far,),), (), (20, 20)).draw(20).any()


def test_an_object_is_cut_at_the_square_or_gone(images, tmp_path):
    rows = ["cat/1.jpg,0,0,20,20", "cat/2.jpg,0,0,9,9", "dog/1.jpg,25,5,40,20"]
    (tmp_path / "boxes.csv").write_text("path,left,top,right,bottom\n" + "\n".join(rows))
    found = read_annotations(tmp_path / "boxes.csv", images)
    assert found.boxes[0].tolist() == [[0.0, 0.0, 0.5, 1.0]]
    assert found.boxes[1].tolist() == []
    assert found.objects.tolist() == [1, 1, 1]
    assert found.boxes[2].tolist() == [[0.75, 0.25, 1.0, 1.0]]
    assert found.notes[-1] == "1 images have objects only outside the centred square."


def test_same_class_takes_only_objects_of_the_images_own_class(images, tmp_path):
    found = read_annotations(as_coco(tmp_path), images, AnnotationOptions(same_class=True))
    assert found.objects.tolist() == [1, 1, 0]
    (tmp_path / "boxes.csv").write_text("path,left,top,right,bottom,class\ncat/1.jpg,1,1,9,9,cats\n")
    with pytest.raises(DataError, match="Did you mean 'cat'"):
        read_annotations(tmp_path / "boxes.csv", images, AnnotationOptions(same_class=True))


def test_values_of_a_mask_may_stand_for_classes(images, tmp_path):
    pixels = object_pixels()
    pixels[0:2, 10:14] = 2
    folder = write_masks(tmp_path / "m", pixels)
    assert read_annotations(folder, images).objects.tolist() == [2, 2, 2]
    found = read_annotations(folder, images, AnnotationOptions(class_values={"cat": 1, "dog": 2}))
    assert torch.allclose(found.boxes[0], SHARES)
    assert found.boxes[2].tolist() == [[0.0, 0.0, 0.2, 0.1]]


def test_a_mask_in_parts_has_a_box_for_each_or_one_for_all(images, tmp_path):
    pixels = object_pixels()
    pixels[16:18, 12:14] = 1
    folder = write_masks(tmp_path / "m", pixels)
    assert len(read_annotations(folder, images).boxes[0]) == 2
    assert read_annotations(folder, images, AnnotationOptions(parts=False)).boxes[0].tolist() == [[0.1, 0.2, 0.6, 0.9]]


@pytest.mark.parametrize(
    ("values", "is_indexed", "kind"),
    [
        ({0, 255}, False, "binary"),
        ({0, 1}, False, "binary"),
        ({0, 255}, True, "binary"),
        ({0, 1, 255}, True, "indexed"),
        ({0, 3, 15, 255}, False, "indexed"),
        ({0, 40, 128, 230, 255}, False, "grey"),
        ({0, 7, 200}, True, "indexed"),
    ],
)
def test_the_kind_of_mask_is_detected_from_its_values(values, is_indexed, kind):
    assert kind_of(values, is_indexed) == kind


@pytest.mark.parametrize(
    ("images", "annotations", "expected"),
    [
        (["a/1.jpg", "b/1.jpg"], ["b/1.png", "a/1.png"], (1, 0)),
        (["train/a/1.jpg", "test/a/1.jpg"], ["train/a/1.png"], (0, -1)),
        (["a/1.jpg", "b/2.jpg"], ["images/a/1.png", "2.xml"], (0, 1)),
        (["a/1.jpg", "b/1.jpg"], ["1.png"], (-1, -1)),
        (["a/1.jpg", "b/2.jpg"], ["labels/1.txt", "labels/2.txt"], (0, 1)),
        (["test/1.jpg"], ["train/1.png"], (-1,)),
        (["a/1.jpg"], ["b/1.png"], (0,)),
        (["a/1.jpg", "b/2.jpg"], ["b/1.png"], (-1, -1)),
        (["a/1.jpg"], ["a/1_mask.png"], (0,)),
        (["a/1.jpg"], ["x/1.png", "y/1.png"], (-1,)),
        (["a/1.jpg"], ["a/1.png", "1.png"], (0,)),
        (["a\\1.jpg"], ["a/1.png"], (0,)),
    ],
)
def test_annotations_find_their_images_by_path_or_not_at_all(images, annotations, expected):
    assert match(images, annotations).annotation_of == expected


def test_what_does_not_match_is_reported_in_one_line():
    note = match(["a/1.jpg", "b/1.jpg", "c/3.jpg"], ["1.png", "9.png", "3.png"]).notes
    assert note == [
        "2 of 3 images have no annotation; 1 annotations fit none of these images (such as 9.png); "
        "1 annotations are ambiguous (such as 1.png)."
    ]
    assert match(["1.jpg"], ["1.png"]).notes == []


def test_digit_scenes_bring_their_own():
    scenes = digit_scenes("test", 3)
    found = annotations_of(scenes)
    assert torch.equal(found.region(1, 64) == 1, scenes.masks[1])
    assert torch.equal(found.boxes[2][0].float(), scenes.boxes[2])
    assert found.subset([2]).names == scenes.names[2:]


def test_an_image_lying_on_its_side_is_annotated_as_seen(images, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (HEIGHT, WIDTH)).save(tmp_path / "images" / "cat" / "1.jpg", exif=exif)
    assert torch.allclose(read_annotations(as_coco(tmp_path), images).boxes[0], SHARES)


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ("path,left,top,right,bottom\ncat/1.jpg,9,1,3,9\n", "is no box"),
        ("path,left,top,right,bottom\ncat/1.jpg,1,1,300,9\n", "outside the image"),
        ("path,left,top,right,bottom\ncat/1.jpg,1,1,x,9\n", "line 2"),
        ("path,left,up,right,bottom\ncat/1.jpg,1,1,3,9\n", "not understood"),
        ("path,left,top,right,bottom\nbird/8.jpg,1,1,3,9\n", "fits an image"),
        ("path,left,top,right,bottom\ncat/1.jpg,1,nan,3,9\n", "is no box"),
        ("", "empty"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused_in_one_line(content, word, images, tmp_path):
    (tmp_path / "boxes.csv").write_text(content)
    with pytest.raises(DataError, match=word) as caught:
        read_annotations(tmp_path / "boxes.csv", images)
    assert "\n" not in str(caught.value)


def test_damaged_and_foreign_files_are_refused(images, tmp_path):
    (tmp_path / "coco.json").write_text("[1]")
    with pytest.raises(DataError, match="COCO"):
        read_annotations(tmp_path / "coco.json", images)
    (tmp_path / "coco.json").write_text("{}")
    with pytest.raises(DataError, match="no 'annotations'"):
        read_annotations(tmp_path / "coco.json", images)
    folder = as_voc(tmp_path)
    (folder / "cat/1.xml").write_text("<annotation>")
    with pytest.raises(DataError, match=r"1\.xml"):
        read_annotations(folder, images)
    with pytest.raises(DataError, match="YOLO line"):
        read_annotations(as_yolo(tmp_path, "0 0.5 0.5"), images)
    masks = write_masks(tmp_path / "m", np.zeros((HEIGHT, HEIGHT), np.uint8))
    with pytest.raises(DataError, match=r"20 x 20.*40 x 20"):
        read_annotations(masks, images)
    with pytest.raises(OptionError, match="Did you mean 'masks'"):
        read_annotations(masks, images, AnnotationOptions(format="mask"))
    with pytest.raises(OptionError, match="Did you mean 'binary'"):
        read_annotations(masks, images, AnnotationOptions(mask_kind="binari"))
    with pytest.raises(DataError, match="nowhere"):
        read_annotations(tmp_path / "nowhere", images)


def test_one_rounded_number_does_not_turn_fractions_into_pixels(images, tmp_path):
    path = as_csv_of_fractions(tmp_path)
    path.write_text(path.read_text().replace("dog/1.jpg,0.3,0.2,0.55,0.7", "dog/1.jpg,0.3,0.2,1.0000001,0.7"))
    found = read_annotations(path, images)
    assert torch.allclose(found.boxes[0], SHARES)
    assert any("were read as fractions" in note for note in found.notes)
    found = read_annotations(as_csv_of_sides(tmp_path), images)
    assert any("were read as pixels" in note for note in found.notes)


def test_sides_of_fractions_may_reach_over_the_edge_together(images, tmp_path):
    path = as_csv(tmp_path, head="path,x,y,w,h\n", row="{},0.3,0.2,0.75,0.5\n")  # 1.05 at the right: rounded twice
    assert any("were read as fractions" in note for note in read_annotations(path, images).notes)


def test_a_table_of_fractions_with_a_slip_is_not_taken_for_pixels(images, tmp_path):
    path = as_csv_of_fractions(tmp_path)
    path.write_text(path.read_text().replace("dog/1.jpg,0.3,0.2,0.55", "dog/1.jpg,0.3,0.2,55"))
    boxes = r"2 of 3 boxes .*\(0\.3, 0\.2, 0\.55, 0\.7\).*\(0\.3, 0\.2, 55, 0\.7\)"
    with pytest.raises(DataError, match=boxes) as caught:
        read_annotations(path, images)
    assert "\n" not in str(caught.value)


def test_a_table_of_pixels_with_one_box_in_fractions_is_refused(images, tmp_path):
    path = as_csv(tmp_path)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:-1], "dog/1.jpg,0.3,0.2,0.55,0.7,dog"]))
    with pytest.raises(DataError, match="1 of 3 boxes"):
        read_annotations(path, images)
    path.write_text("\n".join([*lines[:-1], "dog/1.jpg,0,0,1,1,dog"]))  # a pixel can be an object
    assert any("were read as pixels" in note for note in read_annotations(path, images).notes)


def test_what_is_no_table_is_reported_in_a_short_line(images, tmp_path):
    path = as_coco(tmp_path)
    with pytest.raises(DataError, match="looks like JSON"):
        read_annotations(path, images, AnnotationOptions(format="csv"))
    wide = tmp_path / "wide.csv"
    wide.write_text(",".join(f"column{number}" for number in range(999)))
    with pytest.raises(DataError, match=r"column0, column1, .* \.\.\.") as caught:
        read_annotations(wide, images)
    assert len(str(caught.value)) < 400


def test_photographs_are_no_masks(images, tmp_path):
    themselves = write_masks(tmp_path / "p", object_pixels())
    drawn = FolderDataset(themselves, ["cat/1.png", "dog/1.png"], torch.tensor([0, 1]), ("cat", "dog"))
    with pytest.raises(DataError, match=r"1\.png"):
        read_annotations(themselves, drawn)
    colours = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    folder = write_masks(tmp_path / "photographs", colours)
    with pytest.raises(DataError, match="photograph"):
        read_annotations(folder, images)


def test_shades_of_sixteen_bits_are_no_photograph(images, tmp_path):
    folder = write_masks(
        tmp_path / "shades", np.linspace(0, 60000, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH).astype(np.uint16)
    )
    assert "Masks were read as grey, detected from 3 of them." in read_annotations(folder, images).notes


def test_values_that_stand_for_no_pixel_are_reported(images, tmp_path):
    folder = write_masks(tmp_path / "m", object_pixels())
    with pytest.raises(DataError, match=r"7 \(cat\), 8 \(dog\).* 0, 1\."):
        read_annotations(folder, images, AnnotationOptions(class_values={"cat": 7, "dog": 8}))
    found = read_annotations(folder, images, AnnotationOptions(class_values={"cat": 1, "dog": 8}))
    assert "No mask of its images holds 8 (dog)." in found.notes
    with pytest.raises(OptionError, match=r"cat.* dog"):
        read_annotations(folder, images, AnnotationOptions(class_values={"cat": 1}))
    with pytest.raises(OptionError, match="255"):
        read_annotations(folder, images, AnnotationOptions(class_values={"cat": 255, "dog": 1}))
    with pytest.raises(OptionError, match="binary"):
        read_annotations(folder, images, AnnotationOptions(mask_kind="binary", class_values={"cat": 1, "dog": 1}))


def add_to_coco(path, *annotations, image=0):
    content = json.loads(path.read_text())
    content["annotations"] += [{"id": 9, "image_id": image, "category_id": 7, **each} for each in annotations]
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize("flat", [[3, 3, 0, 5], [3, 3, 5, 0]])
def test_a_box_without_area_is_left_out_and_reported(flat, images, tmp_path):
    found = read_annotations(add_to_coco(as_coco(tmp_path), {"bbox": flat}), images)
    assert found.objects.tolist() == [1, 1, 1]
    assert torch.allclose(found.boxes[0], SHARES)
    assert any("1 objects without area (a box of no width or height) were left out" in note for note in found.notes)


@pytest.mark.parametrize(
    ("write", "row"),
    [(as_csv, "{},12,4,12,14,cat\n"), (as_yolo, "0 0.5 0.5 0.2 0"), (as_voc, None)],
    ids=["csv", "yolo", "voc"],
)
def test_boxes_without_area_are_left_out_in_every_format(write, row, images, tmp_path):
    if write is as_csv:
        path = as_csv(tmp_path)
        path.write_text(path.read_text() + row.format("cat/1.jpg"))
    elif write is as_yolo:
        path = as_yolo(tmp_path)
        (path / "cat/1.txt").write_text((path / "cat/1.txt").read_text() + row + "\n")
    else:
        path = as_voc(tmp_path)
        flat = (
            "<object><name>cat</name><bndbox><xmin>5</xmin><ymin>1</ymin><xmax>4</xmax><ymax>9</ymax></bndbox></object>"
        )
        text = (path / "cat/1.xml").read_text().replace("</annotation>", flat + "</annotation>")
        (path / "cat/1.xml").write_text(text)
    found = read_annotations(path, images)
    assert found.objects.tolist() == [1, 1, 1]
    assert torch.allclose(found.boxes[0], SHARES)
    assert any("1 objects without area" in note for note in found.notes)


CROWD = {"bbox": [24, 14, 6, 6], "iscrowd": 1}


def test_a_crowd_stays_ignored_beside_objects_that_have_a_box_alone(images, tmp_path):
    counts = [(24 * 20) + 14, 6] + [14, 6] * 5 + [10 * 20]
    outline = {"segmentation": {"counts": counts, "size": [HEIGHT, WIDTH]}}
    for crowd in (CROWD | outline, CROWD):  # with its pixels, and with a box alone
        found = read_annotations(add_to_coco(as_coco(tmp_path), crowd), images)
        region = found.region(0, 20)
        expected = torch.zeros(20, 20, dtype=torch.uint8)
        expected[14:20, 14:20] = 2
        expected[4:14, 2:12] = 1
        assert torch.equal(region, expected)
        assert found.objects.tolist() == [1, 1, 1]
        assert len(found.boxes[0]) == 1


@pytest.mark.parametrize("polygon", [[1, 1, 5, 1, 5, float("nan")], [1, 1, 5, 1, 5, 5, 9], [1, 1, 5, 1, 5, "x"]])
def test_coordinates_that_are_no_points_are_refused(polygon, images, tmp_path):
    path = as_coco(tmp_path, segmentation=[polygon])
    with pytest.raises(DataError, match=r"coco\.json"):
        read_annotations(path, images)


def test_an_object_with_a_box_alone_leaves_its_neighbours_their_outlines(images, tmp_path):
    triangle = [12, 4, 22, 4, 12, 14]
    path = as_coco(tmp_path, segmentation=[triangle])
    alone = read_annotations(path, images).region(0, 20)
    found = read_annotations(add_to_coco(path, {"bbox": [24, 14, 6, 6]}), images)
    assert torch.equal(found.region(1, 20), alone)
    expected = alone.clone()
    expected[14:20, 14:20] = 1
    assert torch.equal(found.region(0, 20), expected)
    assert any("1 objects have a box alone beside outlined ones; all of the box was taken" in n for n in found.notes)


def test_a_yolo_export_is_read_past_its_own_text_files_with_the_names_of_data_yaml(images, tmp_path):
    written = as_yolo(tmp_path)
    (tmp_path / "classes.txt").unlink()
    (tmp_path / "export/train").mkdir(parents=True)
    written.rename(tmp_path / "export/train/labels")
    root = tmp_path / "export"
    (root / "README.roboflow.txt").write_text("Images v1 - exported from somewhere\n")
    (root / "README.dataset.txt").write_text("# Images\n")
    (root / "train.txt").write_text("./images/train/1.jpg\n")
    for names in ("['dog', 'cat']", "{0: dog, 1: cat}"):
        (root / "data.yaml").write_text(f"train: ../train/images\nnc: 2\nnames: {names}\n")
        for path in (root, root / "train", root / "train/labels"):
            found = read_annotations(path, images, AnnotationOptions(same_class=True))
            assert torch.allclose(found.boxes[2], SHARES)
            assert found.objects.tolist() == [0, 0, 1]


def test_lists_of_images_and_readmes_beside_yolo_files_are_skipped(images, tmp_path):
    folder = as_yolo(tmp_path)
    (folder / "train.txt").write_text("images/cat/1.jpg\nimages/cat/2.jpg\n")
    (folder / "readme.txt").write_text("Hello.\n")
    assert torch.allclose(read_annotations(folder, images).boxes[0], SHARES)


def test_names_that_cannot_be_read_are_reported(images, tmp_path):
    folder = as_yolo(tmp_path)
    for content in ("names: [", "names: 3\n", "names: {a: cat}\n"):
        (folder / "data.yaml").write_text(content)
        with pytest.raises(DataError, match=r"data\.yaml"):
            read_annotations(folder, images)


def test_masks_beside_a_readme_are_masks(images, tmp_path):
    folder = as_masks(tmp_path)
    (folder / "README.txt").write_text("Masks.\n")
    assert read_annotations(folder, images).objects.tolist() == [1, 1, 1]


def test_several_classes_are_reported_where_every_object_counts(images, tmp_path):
    assert not any("classes" in note for note in read_annotations(as_csv_of_sides(tmp_path), images).notes)
    found = read_annotations(as_csv(tmp_path), images)
    assert any("1 of 3 objects are of another class than their image (such as cat)" in n for n in found.notes)
    assert not any(
        "another class" in n
        for n in read_annotations(as_csv(tmp_path), images, AnnotationOptions(same_class=True)).notes
    )
    found = read_annotations(as_csv(tmp_path, row="{0},12,4,22,14,wing\n{0},12,4,22,14,beak\n"), images)
    assert any("name 2 classes (beak, wing), none of them an image's" in note for note in found.notes)


def test_how_masks_were_read_is_noted(images, tmp_path):
    folder = write_masks(tmp_path / "m", object_pixels())
    assert any("detected from 3 of them" in note for note in read_annotations(folder, images).notes)
    found = read_annotations(folder, images, AnnotationOptions(mask_kind="binary"))
    assert found.notes == ("Masks were read as binary, as requested.",)
    pixels = object_pixels()
    pixels[0:2, 10:14] = 2
    found = read_annotations(write_masks(tmp_path / "n", pixels), images)
    assert any("2 values stand for objects, whatever their class (class_values" in note for note in found.notes)


def test_what_a_format_has_no_use_for_is_refused(images, tmp_path):
    with pytest.raises(OptionError, match=r"same_class.*give class_values"):
        read_annotations(as_masks(tmp_path), images, AnnotationOptions(same_class=True))
    path = as_csv(tmp_path)
    for given in ({"mask_kind": "grey"}, {"class_values": {"cat": 1}}, {"parts": False}):
        with pytest.raises(OptionError, match="csv"):
            read_annotations(path, images, AnnotationOptions(**given))
