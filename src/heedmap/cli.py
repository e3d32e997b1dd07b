"""The command line: ``heedmap demo | train | visualize | evaluate | audit | list``.

Each command is a dataclass, so its options are its fields; the work is done elsewhere. torch is imported only when a
command starts to work, so that ``--help`` and errors of usage answer at once.
"""

from __future__ import annotations

import dataclasses
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro
from rich.markup import escape

from heedmap import __version__
from heedmap.errors import HeedmapError, OptionError, Stopped, nearest
from heedmap.options import TrainOptions, read_config
from heedmap.terminal import (
    complaints,
    console,
    counting,
    progress,
    show_audit,
    show_evaluation,
    show_result,
    show_table,
)


@dataclass(frozen=True, kw_only=True)
class Train(TrainOptions):
    """Train an attention classifier on a folder of pictures or a named set.

    Attributes:
        data: A folder of pictures (DIR/train/CLASS/* with a test part beside it, or DIR/CLASS/*), digit-scenes, or a
            named set: cifar10, cifar100, svhn, stl10, mnist, fashion-mnist.
        config: A YAML file of options; flags given beside it win.
        resume: An unfinished run folder to go on with; its own options are used.
    """

    data: tyro.conf.Positional[str] = ""
    config: str | None = None
    resume: str | None = None

    def work(self) -> None:
        """Train, and say what to do next."""
        from heedmap.train import train

        if self.resume is None and not self.data:
            raise OptionError(
                "Name the data: `heedmap train DIR`, or `heedmap train digit-scenes` for the embedded set."
            )
        names = [field.name for field in dataclasses.fields(TrainOptions)]
        options = TrainOptions(**{name: getattr(self, name) for name in names})
        with progress() as listener:
            run = train(options, resume=self.resume, listener=listener, command=shlex.join(["heedmap", *sys.argv[1:]]))
        if int(os.environ.get("RANK", "0")) == 0:
            show_result(run.path)


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Train on the embedded digit scenes, draw maps, and open the way to the report: a few minutes, no download.

    Attributes:
        out: Folder for the run and its pictures.
        seed: Of scenes, order, views and weights.
    """

    out: str = "demo"
    seed: int = 0

    def work(self) -> None:
        """Train, draw, and say where to look."""
        from heedmap.demo import demo

        with progress() as listener:
            run, page = demo(self.out, seed=self.seed, listener=listener)
        show_result(run.path)
        console.print(f"Maps of unseen scenes: [bold]{escape(str(page))}[/]")


@dataclass(frozen=True, kw_only=True)
class Visualize:
    """Draw where a trained classifier looks, for any pictures.

    Attributes:
        run: The run folder.
        pictures: Files, folders, patterns, or - for a list of files on standard input.
        out: Folder for the pictures; made. Default: maps-1, maps-2, ...
        query: Attend with the global feature of this other picture.
        scale: Each map from zero to its own largest value (picture), from its smallest to its largest (range), or all
            on one scale (set).
        batch_size: Pictures at a time.
        device: Where to compute. Default: a GPU where there is one.
        overwrite: Write into a folder that has something in it.
    """

    run: tyro.conf.Positional[str]
    pictures: tyro.conf.Positional[tuple[str, ...]]
    out: str | None = None
    query: str | None = None
    scale: Literal["picture", "range", "set"] = "picture"
    batch_size: int = 16
    device: str | None = None
    overwrite: bool = False

    def work(self) -> None:
        """Draw, and say where the page is."""
        from heedmap.runs import Run, free_name
        from heedmap.visualize import expand_pictures, visualize

        classifier = Run.open(self.run).classifier()
        files = expand_pictures(self.pictures, sys.stdin)
        out = Path(self.out) if self.out else free_name(Path(), "maps")
        with counting(len(files), "drawing") as advance:
            result = visualize(
                classifier,
                files,
                out,
                batch_size=self.batch_size,
                query=self.query,
                device=pick_device(self.device),
                scale=self.scale,
                overwrite=self.overwrite,
                on_progress=advance,
            )
        for path, reason in result.unreadable:
            complaints.print(f"[yellow]passed over[/] {escape(path)}: {escape(reason)}")
        for note in result.notes:
            console.print(escape(note))
        console.print(f"{result.count} pictures drawn in {result.seconds:.1f} s, {len(result.unreadable)} passed over.")
        console.print(f"Next: open [bold]{escape(str(result.index))}[/]")


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Judge a run: accuracy, classes, calibration, throughput, and pointing where boxes are known.

    Attributes:
        run: The run folder.
        data: A folder or a named set with the same classes. Default: the run's own test part.
        out: Folder for evaluation.json and confusion.png. Default: only print.
        device: Where to compute. Default: a GPU where there is one.
        precision: Arithmetic of the network.
        root: Where named sets lie. Default: as in the run.
        download: Fetch a named set that is not there.
    """

    run: tyro.conf.Positional[str]
    data: tyro.conf.Positional[str | None] = None
    out: str | None = None
    device: str | None = None
    precision: Literal["auto", "bf16", "float32"] = "auto"
    root: str | None = None
    download: bool = True

    def work(self) -> None:
        """Judge and print the tables."""
        from heedmap.evaluate import evaluate, write_evaluation
        from heedmap.runs import Run

        run = Run.open(self.run)
        found = evaluate(
            run,
            self.data,
            device=pick_device(self.device),
            precision=self.precision,
            root=self.root,
            download=self.download,
        )
        show_evaluation(found.as_dict())
        if self.out:
            console.print(f"Written to {escape(str(write_evaluation(found, Path(self.out))))}")
        console.print(f"Next: [bold]heedmap visualize {escape(self.run)} PICTURES[/]")


@dataclass(frozen=True, kw_only=True)
class AuditData:
    """Look for duplicates, leaks between the parts, conflicting labels, and files that cannot be read.

    Attributes:
        data: A folder or a named set.
        depth: full also looks for near duplicates; cheap is what train does.
        json: Write all findings to this file.
        show: Findings of each kind to print.
        root: Where named sets lie or are put.
        download: Fetch a named set that is not there.
        seed: Of the split, where the folder has none.
        test: Share of the test part, where the folder has none.
    """

    data: tyro.conf.Positional[str]
    depth: Literal["cheap", "full"] = "full"
    json: str | None = None
    show: int = 8
    root: str = "data"
    download: bool = True
    seed: int = 0
    test: float = 0.2

    def work(self) -> None:
        """Audit and print."""
        from heedmap.data import check_splits, open_data
        from heedmap.data.audit import audit
        from heedmap.runs import disk, write_whole

        splits = open_data(self.data, root=self.root, download=self.download, seed=self.seed, test_share=self.test)
        for note in splits.notes:
            console.print(escape(note))
        found = audit(check_splits(splits, os.cpu_count() or 1), depth=self.depth)
        show_audit(found, self.show)
        if self.json:
            import json

            target = Path(self.json)
            with disk(target):
                write_whole(target, json.dumps(dataclasses.asdict(found), indent=1, ensure_ascii=False).encode())
            console.print(f"All findings: {escape(self.json)}")
        console.print(f"Next: [bold]heedmap train {escape(self.data)}[/]")


@dataclass(frozen=True, kw_only=True)
class List:
    """Show the models, attentions and data sets there are.

    Attributes:
        what: models, attentions, or sets; all of them where it is left out.
        match: Only names of timm and torchvision models that hold this word.
    """

    what: tyro.conf.Positional[Literal["models", "attentions", "sets"] | None] = None
    match: str | None = None

    def work(self) -> None:
        """Print the tables."""
        from heedmap.attention import ATTENTIONS
        from heedmap.backbones import OWN_BACKBONES
        from heedmap.data.named import NAMED

        if self.what in (None, "attentions"):
            show_table("attention", {name: kind.sentence for name, kind in ATTENTIONS.items()})
        if self.what in (None, "sets"):
            lines = {"digit-scenes": "embedded: real handwritten digits among clutter, boxes known; no download"}
            show_table("data", {**lines, **dict.fromkeys(NAMED, "through torchvision, from --root")})
        if self.what in (None, "models"):
            show_table("model", OWN_BACKBONES)
            self._show_foreign()

    def _show_foreign(self) -> None:
        from heedmap.backbones.foreign import list_foreign

        if self.what is None and self.match is None:
            console.print("and any timm or torchvision name: [bold]heedmap list models --match resnet[/]")
            return
        for name in list_foreign():
            if self.match is None or self.match in name:
                console.print(escape(name))


def pick_device(name: str | None) -> str:
    """The device named, or a GPU where there is one.

    Raises:
        OptionError: torch knows no such device, or the machine has none.
    """
    import torch

    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise OptionError(f"Device {name!r} cannot be used here: {str(error).splitlines()[0]}") from None
    return name


COMMANDS = {
    "demo": Demo,
    "train": Train,
    "visualize": Visualize,
    "evaluate": Evaluate,
    "audit": AuditData,
    "list": List,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; exit with 2 for what the user can mend, 130 when interrupted."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        _run(words)
    except HeedmapError as error:
        complaints.print(f"[red]error:[/] {escape(str(error))}", soft_wrap=True)
        raise SystemExit(130 if isinstance(error, Stopped) else 2) from None
    except KeyboardInterrupt:
        complaints.print("Stopped.")
        raise SystemExit(130) from None
    except BrokenPipeError:
        sys.stderr.close()
        raise SystemExit(0) from None


def _run(words: list[str]) -> None:
    if not words or words[0] in ("-h", "--help"):
        _overview()
        return
    if words[0] in ("-V", "--version"):
        console.print(f"heedmap {__version__}")
        return
    if words[0] not in COMMANDS:
        known = ", ".join(COMMANDS)
        raise OptionError(f"Unknown command {words[0]!r}; there are {known}.{nearest(words[0], COMMANDS)}")
    command = COMMANDS[words[0]]
    _check_flags(words[0], words[1:])
    # A config file gives the defaults; tyro checks and fills in the rest.
    default: Any = _from_config(words) if command is Train else None
    made: Any = tyro.cli(command, prog=f"heedmap {words[0]}", args=words[1:], default=default)
    made.work()


def _check_flags(name: str, words: list[str]) -> None:
    """Refuse an unknown flag in one line that names the nearest."""
    fields = [field.name.replace("_", "-") for field in dataclasses.fields(COMMANDS[name])]
    known = [f"--{field}" for field in fields] + [f"--no-{field}" for field in fields] + ["--help"]
    for word in words:
        flag = word.split("=")[0].replace("_", "-")
        if word == "--":
            return
        if flag.startswith("--") and flag not in known:
            raise OptionError(f"Unknown option {word.split('=')[0]} of heedmap {name}.{nearest(flag, known)}")


def _overview() -> None:
    console.print(f"[bold]heedmap {__version__}[/]: image classifiers whose answer is made out of an attention map")
    lines = {f"heedmap {name}": (command.__doc__ or "").splitlines()[0] for name, command in COMMANDS.items()}
    show_table("command", lines)
    console.print("Options of a command: heedmap COMMAND --help")


def _from_config(words: list[str]) -> Train | None:
    """The defaults that a config file gives, where one is named."""
    for place, word in enumerate(words):
        if word == "--config" and place + 1 < len(words):
            return Train(**read_config(words[place + 1]))
        if word.startswith("--config="):
            return Train(**read_config(word.removeprefix("--config=")))
    return None
