"""Batches: the same ones in memory and from disk, in one process and in several, from the start and in the middle."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from heedmap.data import loader as loading
from heedmap.data import open_data
from heedmap.data import transforms as views
from heedmap.data.dataset import FolderDataset, ImageDataset, TensorDataset
from heedmap.data.loader import Share, Store, TrainingBatches, generator, memory_to_use, plain_batches
from heedmap.data.transforms import Augmentation
from heedmap.errors import DataError
from heedmap.types import Batch

CROP = Augmentation("crop", flip=True)
MUCH = 1e9


@pytest.fixture
def images() -> TensorDataset:
    """23 images, each of one value: its place times ten."""
    values = torch.arange(23).mul(10).to(torch.uint8)[:, None, None, None].expand(23, 3, 16, 16)
    return TensorDataset(values, torch.arange(23) % 3, ("a", "b", "c"), [f"{i}.png" for i in range(23)])


ALONE = Share()


def batches_of(images: ImageDataset, batch_size: int = 5, share: Share = ALONE, seed: int = 0) -> TrainingBatches:
    store = Store(images, 16, workers=0, memory=MUCH)
    return TrainingBatches(store, 16, batch_size, Augmentation("shift", flip=True), seed, share)


def indices(batches: Iterator[Batch]) -> list[int]:
    return torch.cat([batch.indices for batch in batches]).tolist()


def assert_same(one: Iterator[Batch], other: Iterator[Batch]) -> int:
    count = 0
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a.indices, b.indices)
        assert torch.equal(a.labels, b.labels)
        assert torch.equal(a.images, b.images)
        count += 1
    return count


def test_images_streamed_from_disk_make_the_same_batches_as_images_in_memory(cue_folder: Path) -> None:
    images = open_data(str(cue_folder)).train
    resident, streaming = Store(images, 36, 1, MUCH), Store(images, 36, 0, 0)
    assert resident.resident is not None
    assert streaming.resident is None
    one, other = (TrainingBatches(store, 32, 8, CROP, 3) for store in (resident, streaming))
    assert assert_same(one.epoch(1), other.epoch(1)) == 4
    assert assert_same(plain_batches(resident, 10), plain_batches(streaming, 10)) == 4


@pytest.mark.slow
def test_a_worker_process_makes_the_same_batches(cue_folder: Path) -> None:
    images = open_data(str(cue_folder)).train
    one = TrainingBatches(Store(images, 36, 1, MUCH), 32, 8, CROP, 3)
    other = TrainingBatches(Store(images, 36, 1, 0), 32, 8, CROP, 3)
    assert assert_same(one.epoch(2, 1), other.epoch(2, 1)) == 3


@pytest.mark.slow
def test_an_image_that_a_worker_cannot_decode_is_named_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "gone.png").write_bytes(b"no image")
    images = FolderDataset(tmp_path, ["gone.png"], torch.tensor([0]), ["a"])
    with pytest.raises(DataError, match=r"^\S*gone\.png: [^\n]*Remove the file[^\n]*$"):
        list(plain_batches(Store(images, 16, 1, 0), 4))


def test_labels_and_images_belong_together(images: TensorDataset) -> None:
    for batch in batches_of(images).epoch(0):
        assert torch.equal(batch.labels, batch.indices % 3)
        torch.testing.assert_close(batch.images.mean((1, 2, 3)) * 255, batch.indices * 10.0)


def test_an_epoch_shows_no_image_twice_and_leaves_out_less_than_a_batch(images: TensorDataset) -> None:
    batches = batches_of(images)
    assert batches.steps == 4
    shown = [indices(batches.epoch(epoch)) for epoch in range(30)]
    assert all(len(set(rows)) == len(rows) == 20 for rows in shown)
    assert len({tuple(rows) for rows in shown}) == 30
    assert {row for rows in shown for row in rows} == set(range(23))
    left_out = {row for rows in shown for row in set(range(23)) - set(rows)}
    assert len(left_out) > 15  # others in every epoch


def test_where_batches_fit_evenly_an_epoch_is_a_permutation(images: TensorDataset) -> None:
    batches = batches_of(images.subset(range(20)))
    assert sorted(indices(batches.epoch(7))) == list(range(20))


def test_a_batch_is_never_larger_than_the_set(images: TensorDataset) -> None:
    batches = batches_of(images.subset(range(3)), batch_size=64)
    assert (batches.batch_size, batches.steps) == (3, 1)
    assert sorted(indices(batches.epoch(0))) == [0, 1, 2]


def test_the_seed_decides_order_and_views(images: TensorDataset) -> None:
    one, same, other = (next(batches_of(images, seed=seed).epoch(0)) for seed in (1, 1, 2))
    assert torch.equal(one.images, same.images)
    assert not torch.equal(one.indices, other.indices)


def test_views_differ_from_epoch_to_epoch(cue_folder: Path) -> None:
    images = open_data(str(cue_folder)).train
    batches = TrainingBatches(Store(images, 40, 1, MUCH), 40, 36, Augmentation("shift", flip=True), 0)
    first, second = (next(batches.epoch(epoch)) for epoch in (0, 1))
    first, second = (batch.images[batch.indices.argsort()] for batch in (first, second))
    changed = (first != second).flatten(1).any(1)
    assert changed.sum() >= 35


@pytest.mark.parametrize("step", [0, 1, 3, 4])
def test_an_epoch_taken_up_in_the_middle_goes_on_with_the_batches_it_would_have_had(
    images: TensorDataset, step: int
) -> None:
    batches = batches_of(images)
    rest = list(batches.epoch(5))[step:]
    assert assert_same(batches.epoch(5, step), iter(rest)) == 4 - step


@pytest.mark.parametrize("world", [2, 3])
def test_the_shares_of_all_processes_are_the_batches_of_one(cue_folder: Path, world: int) -> None:
    images = open_data(str(cue_folder)).train
    store = Store(images, 36, 1, MUCH)
    whole = list(TrainingBatches(store, 32, 6, CROP, 4).epoch(2))
    shares = [list(TrainingBatches(store, 32, 6, CROP, 4, Share(rank, world)).epoch(2)) for rank in range(world)]
    for step, batch in enumerate(whole):
        for rank in range(world):
            part = shares[rank][step]
            assert torch.equal(part.indices, batch.indices[rank::world])
            assert torch.equal(part.labels, batch.labels[rank::world])
            torch.testing.assert_close(part.images, batch.images[rank::world], atol=1e-6, rtol=0)


def test_every_process_gets_as_many_images_a_step(images: TensorDataset) -> None:
    shares = [batches_of(images, batch_size=8, share=Share(rank, 3)) for rank in range(3)]
    assert {share.batch_size for share in shares} == {6}
    assert {tuple(len(batch.labels) for batch in share.epoch(0)) for share in shares} == {(2, 2, 2)}


@pytest.mark.parametrize(("count", "batch_size"), [(23, 2), (2, 8)])
def test_fewer_images_a_step_than_processes_are_refused(images: TensorDataset, count: int, batch_size: int) -> None:
    with pytest.raises(DataError, match="3 processes"):
        batches_of(images.subset(range(count)), batch_size, Share(0, 3))


@pytest.mark.parametrize("world", [1, 2, 5])
def test_evaluating_covers_every_image_once(images: TensorDataset, world: int) -> None:
    store = Store(images, 16, 0, MUCH)
    shares = [indices(plain_batches(store, 4, share=Share(rank, world))) for rank in range(world)]
    assert sorted(row for share in shares for row in share) == list(range(23))
    assert all(share == sorted(share) for share in shares)


@pytest.mark.parametrize("memory", [0, MUCH])
def test_a_process_with_nothing_to_evaluate_gets_no_batch(images: TensorDataset, memory: float) -> None:
    store = Store(images.subset([0, 1]), 16, 0, memory)
    assert list(plain_batches(store, 4, share=Share(2, 3))) == []
    assert list(plain_batches(Store(images.subset([]), 16, 0, MUCH), 4)) == []


def test_images_are_evaluated_as_they_are(images: TensorDataset) -> None:
    (batch,) = plain_batches(Store(images, 16, 0, MUCH), 100)
    assert torch.equal(batch.images, images.images.float() / 255)
    assert torch.equal(batch.labels, images.labels)


def test_a_set_larger_than_the_memory_allowed_streams(images: TensorDataset) -> None:
    needed = 23 * 3 * 16 * 16
    assert Store(images, 16, 0, needed).resident is not None
    assert Store(images, 16, 0, needed - 1).resident is None


def test_memory_is_shared_between_processes() -> None:
    assert memory_to_use(2.0, 4) == 0.5e9
    assert 0 < memory_to_use(None, 2) == pytest.approx(memory_to_use(None, 1) / 2, rel=0.2)


def test_an_image_that_cannot_be_decoded_any_more_is_named(tmp_path: Path) -> None:
    (tmp_path / "gone.png").write_bytes(b"no image")
    images = FolderDataset(tmp_path, ["gone.png"], torch.tensor([0]), ["a"])
    with pytest.raises(DataError, match=r"^gone\.png: .*Remove the file"):
        Store(images, 16, 1, MUCH)


def test_a_streamed_image_that_cannot_be_decoded_any_more_is_named(tmp_path: Path) -> None:
    (tmp_path / "gone.png").write_bytes(b"no image")
    images = FolderDataset(tmp_path, ["gone.png"], torch.tensor([0]), ["a"])
    with pytest.raises(DataError, match=r"^\S*gone\.png: [^\n]*Remove the file") as caught:
        list(plain_batches(Store(images, 16, 0, 0), 4))
    assert "\n" not in str(caught.value)


def test_generators_of_neighbouring_numbers_have_nothing_in_common() -> None:
    keys = [(seed, epoch, step) for seed in range(4) for epoch in range(5) for step in range(5)]
    keys += [(0, 1), (1, 0), (0, 0, 0, 1), (0, 0, 0, 2)]
    drawn: list[Tensor] = [torch.randn(500, generator=generator(*key)) for key in keys]
    alike = torch.corrcoef(torch.stack(drawn)).fill_diagonal_(0).abs().max()
    assert alike < 0.25  # the largest of 5,000 correlations of unrelated numbers, standard deviation 0.045
    assert torch.equal(drawn[7], torch.randn(500, generator=generator(*keys[7])))


def test_the_numbers_of_a_view_are_drawn_for_the_whole_batch() -> None:
    drawn = views.draw(6, generator(0, 0, 0))
    assert drawn.shape == (6, 7)
    assert torch.equal(drawn[:4], views.draw(4, generator(0, 0, 0)))


@pytest.mark.parametrize("workers", [1, 3])
def test_threads_stream_the_images_of_one_in_order(images: ImageDataset, workers: int) -> None:
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0)).split(5)
    threads, alone = (list(Store(images, 20, n, 0).batches(list(order))) for n in (workers, 0))
    assert len(threads) == len(alone) == len(order)
    assert all(torch.equal(one, other) for one, other in zip(threads, alone, strict=True))


class Counted(TensorDataset):
    """Images that know how many of them were decoded, and by how many threads at most at a time."""

    decoded, busy, most = 0, 0, 0
    lock = threading.Lock()

    def load(self, index: int, size: int) -> Tensor:
        with self.lock:
            self.busy += 1
            self.most = max(self.most, self.busy)
        time.sleep(0.002)
        with self.lock:
            self.busy -= 1
            self.decoded += 1
        return super().load(index, size)


def counted_images(count: int) -> Counted:
    names = [f"{i}.png" for i in range(count)]
    return Counted(torch.zeros(count, 3, 4, 4, dtype=torch.uint8), torch.zeros(count).long(), ("a",), names)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 4, 16])
def test_few_batches_are_ahead_however_many_threads_decode(workers: int) -> None:
    images = counted_images(1200)
    batches = Store(images, 4, workers, 0).batches(list(torch.arange(1200).split(50)))
    next(batches)
    decoded = -1
    while decoded != images.decoded:  # until nothing is decoded any more
        decoded = images.decoded
        time.sleep(0.1)
    assert decoded <= 50 * (1 + 3)
    assert sum(len(batch) for batch in batches) == 1150
    batches.close()  # type: ignore[attr-defined]


def test_threads_share_one_batch_and_small_batches_keep_all_of_them_at_work() -> None:
    whole = counted_images(64)
    assert len(list(Store(whole, 4, 8, 0).batches([torch.arange(64)]))) == 1
    assert whole.most > 4
    small = counted_images(200)
    assert len(list(Store(small, 4, 8, 0).batches(list(torch.arange(200).split(2))))) == 100
    assert small.most > 4


def test_the_mapped_are_read_two_batches_ahead() -> None:
    read: list[int] = []

    def gather(places: Tensor) -> Tensor:
        read.append(int(places[0]))
        return places

    order = list(torch.arange(40).split(2))
    batches = loading._ahead(lambda pool, indices: (1, pool.submit(gather, indices).result), order, 1)
    assert next(batches).tolist() == [0, 1]
    time.sleep(0.2)
    assert len(read) == 3
    assert [int(batch[0]) for batch in batches] == list(range(2, 40, 2))


PLAIN_SCRIPT = """
import multiprocessing
from heedmap import TrainOptions, train

multiprocessing.set_start_method("spawn")  # as on macOS and Windows: processes would run this file again
streamed = dict(workers=2, memory=0, cache="off")
run = train(TrainOptions(data={data!r}, epochs=1, image_size=32, batch_size=8, out="run", **streamed))
print(sorted(run.classifier().classes))
"""


@pytest.mark.slow
def test_a_script_without_a_guard_trains_from_streamed_images(cue_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "plain.py").write_text(PLAIN_SCRIPT.format(data=str(cue_folder)), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "plain.py"], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("['blue', 'green', 'red']\n")


def test_views_of_the_first_epochs_may_have_another_side_and_show_the_same_places(cue_folder: Path) -> None:
    images = Store(open_data(cue_folder).train, 36, 1, MUCH)
    plain = TrainingBatches(images, 32, 8, CROP, 3)
    early = TrainingBatches(images, 32, 8, replace(CROP, early=(2, 16)), 3)
    assert [next(early.epoch(epoch)).images.shape[-1] for epoch in range(3)] == [16, 16, 32]
    assert_same(plain.epoch(2), early.epoch(2))
    large, small = next(plain.epoch(0)), next(early.epoch(0))
    assert torch.equal(large.indices, small.indices)
    # Each view's mean colour is that of the same crop, sampled at fewer places.
    torch.testing.assert_close(large.images.mean((2, 3)), small.images.mean((2, 3)), atol=0.05, rtol=0)
