"""``heedmap pack``."""

import shlex
from dataclasses import dataclass
from typing import Annotated

import tyro
from rich.markup import escape

from heedmap.cli.commands.arguments import DataFolder
from heedmap.cli.console import counting, say, show_next, show_table
from heedmap.config import Options, Range, counted
from heedmap.system import cores


@dataclass(frozen=True, kw_only=True)
class Pack(Options):
    """Pack a folder of images into tar shards (WebDataset layout) that train and predict read in place.

    Attributes:
        data: A folder of images, as train takes it.
        out: Folder for the shards.
        shard_size: Megabytes at which a shard is full.
        test: Share of each class set apart as the test part where the folder has none.
        allow_unreadable: Continue when more than one image in fifty cannot be read.
        seed: Seed of the order and of that split.
    """

    data: DataFolder
    out: tyro.conf.Positional[str]
    shard_size: Annotated[float, Range(0.01, 1e5)] = 128
    test: Annotated[float, Range(0.01, 0.9)] = 0.2
    allow_unreadable: bool = False
    seed: int = 0

    def work(self) -> None:
        """Pack, and print the next command."""
        from heedmap.data import open_data, verify_images
        from heedmap.data.webdataset.writer import SUMS, pack

        splits = open_data(self.data, download=False, seed=self.seed, test_share=self.test)
        splits = verify_images(splits, cores()).splits
        splits.check_trainable(self.allow_unreadable)
        for note in splits.notes:
            say(escape(note))
        for name, reason in splits.unreadable:
            say(f"[yellow]left out[/] {escape(name)}: {escape(reason)}")
        with counting(sum(map(len, splits.parts.values())), "packing") as advance:
            packed = pack(splits, self.out, shard_bytes=int(self.shard_size * 1e6), seed=self.seed, on_progress=advance)
        lines = {
            part: f"{counted(count, 'image')} in {counted(packed.shards[part], 'shard')}"
            for part, count in packed.images.items()
        }
        show_table("part", lines)
        say(f"{packed.size / 1e6:,.1f} MB; check: sha256sum -c {escape(SUMS)}")
        show_next(f"heedmap train {shlex.quote(self.out)}")
