"""``heedmap audit`` and ``heedmap pack``, on a folder of images."""

import dataclasses
import json
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.markup import escape

from heedmap.cli.commands.arguments import DataFolder
from heedmap.cli.console import console, counting, say, show_audit, show_next, show_table
from heedmap.config import DataOptions, Options, Range, counted
from heedmap.errors import DataError
from heedmap.system import cores


@dataclass(frozen=True, kw_only=True)
class AuditData(DataOptions):
    """Look for duplicates, leaks between the parts, conflicting labels, and files that cannot be read.

    Attributes:
        depth: full also looks for near duplicates; cheap is what train does.
        json: Write all findings to this file.
        show: Findings of each kind to print.
    """

    data: DataFolder = field()  # without the default of DataOptions
    depth: Literal["cheap", "full"] = "full"
    json: str | None = None
    show: Annotated[int, Range(0, 1_000_000_000)] = 8

    def work(self) -> None:
        """Audit and print."""
        from heedmap.data import open_data, verify_images
        from heedmap.data.audit.findings import audit
        from heedmap.files import as_utf8, disk, write_whole

        target = None if self.json is None else _checked_target(Path(self.json))
        splits = open_data(self.data, root=self.root, download=self.download, seed=self.seed, test_share=self.test)
        for note in splits.notes:
            console.print(escape(note))
        verified = verify_images(splits, cores())
        report = audit(verified.splits, self.depth, verified.digests)
        show_audit(report, self.show)
        if target is not None:
            with disk(target):
                write_whole(target, as_utf8(json.dumps(dataclasses.asdict(report), indent=1, ensure_ascii=False)))
            say(f"All findings: {escape(str(self.json))}")
        try:
            verified.splits.check_trainable()
        except DataError as error:
            say(f"heedmap train would refuse: {escape(str(error))}")
        else:
            show_next(f"heedmap train {shlex.quote(self.data)}")


def _checked_target(path: Path) -> Path:
    """Check the file before the work; an existing one may only hold an earlier audit."""
    if path.is_dir():
        raise DataError(f"{path} is a folder; name a file in it, such as {path / 'findings.json'}.")
    if not path.parent.is_dir():
        raise DataError(f"There is no folder {path.parent} for the findings.")
    if path.exists():
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            content = None
        if not (isinstance(content, dict) and {"findings", "depth"} <= content.keys()):
            raise DataError(f"{path} exists already and holds no findings of an audit; name another file.")
    return path


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
        from heedmap.data.webdataset.dataset import SUMS, pack

        splits = open_data(self.data, download=False, seed=self.seed, test_share=self.test)
        splits = verify_images(splits, cores()).splits
        splits.check_trainable(self.allow_unreadable)
        for note in splits.notes:
            say(escape(note))
        for name, reason in splits.unreadable:
            say(f"[yellow]left out[/] {escape(name)}: {escape(reason)}")
        with counting(sum(map(len, splits.parts.values())), "packing") as advance:
            packed = pack(splits, self.out, shard_bytes=int(self.shard_size * 1e6), seed=self.seed, on_progress=advance)
        shards, images = packed.shards, packed.images.items()
        lines = {part: f"{counted(count, 'image')} in {counted(shards[part], 'shard')}" for part, count in images}
        show_table("part", lines)
        say(f"{packed.size / 1e6:,.1f} MB; check: sha256sum -c {escape(SUMS)}")
        show_next(f"heedmap train {shlex.quote(self.out)}")
