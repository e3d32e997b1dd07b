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
from heedmap.options import TrainOptions, check_range, counted, read_config
from heedmap.terminal import (
    complaints,
    console,
    counting,
    progress,
    show_audit,
    show_evaluation,
    show_next,
    show_result,
    show_table,
)
from heedmap.usage import parse, show_help


@dataclass(frozen=True, kw_only=True)
class Train(TrainOptions):
    """Train an attention classifier on a folder of pictures or a named set.

    Attributes:
        data: A folder of pictures (DIR/train/CLASS/* with a test part beside it, or DIR/CLASS/*), digit-scenes, or a
            named set: cifar10, cifar100, svhn, stl10, mnist, fashion-mnist.
        config: A YAML file of options, as config.yaml of a run has them; options given beside it win.
        resume: An unfinished run folder to go on with, by its own options.
    """

    data: tyro.conf.Positional[str] = ""
    config: str | None = None
    resume: str | None = None

    def work(self) -> None:
        """Train, and say what to do next."""
        from heedmap.train import refuse_changes, train

        if self.resume is None and not self.data:
            raise OptionError(
                "Name the data: `heedmap train DIR`, or `heedmap train digit-scenes` for the embedded set."
            )
        names = [field.name for field in dataclasses.fields(TrainOptions)]
        options = TrainOptions(**{name: getattr(self, name) for name in names})
        if self.resume is not None:
            refuse_changes(self.resume, options)
        with progress() as listener:
            run = train(options, resume=self.resume, listener=listener, command=shlex.join(["heedmap", *sys.argv[1:]]))
        if int(os.environ.get("RANK", "0")) == 0:
            show_result(run.path)
            show_next(f"heedmap visualize {shlex.quote(str(run.path))} PICTURES")


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
        console.print(f"Maps of unseen scenes: [bold]{escape(str(page))}[/]", soft_wrap=True)
        show_next("heedmap train DIR, with DIR/CLASS/* your own pictures")


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

        check_range("batch_size", self.batch_size, 1, 100_000)
        run = Run.open(self.run)
        files = expand_pictures(self.pictures, sys.stdin)  # a wrong name is told before the weights are loaded
        classifier = run.classifier()
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
            complaints.print(f"[yellow]passed over[/] {escape(path)}: {escape(reason)}", soft_wrap=True)
        for note in result.notes:
            console.print(escape(note))
        drawn = counted(result.count, "picture")
        console.print(f"{drawn} drawn in {result.seconds:.1f} s, {len(result.unreadable)} passed over.")
        show_next(f"open {shlex.quote(str(result.index))}")


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
            console.print(f"Written to {escape(str(write_evaluation(found, Path(self.out))))}", soft_wrap=True)
        show_next(f"heedmap visualize {shlex.quote(self.run)} PICTURES")


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

        check_range("show", self.show, 0, 1_000_000_000)
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
            console.print(f"All findings: {escape(self.json)}", soft_wrap=True)
        show_next(f"heedmap train {shlex.quote(self.data)}")


@dataclass(frozen=True, kw_only=True)
class List:
    """Show the models, attentions and data sets there are.

    Attributes:
        what: models, attentions, sets, or all of them.
        match: Only names that hold this word, of timm and torchvision models too.
    """

    what: tyro.conf.Positional[Literal["all", "models", "attentions", "sets"]] = "all"
    match: str | None = None

    def work(self) -> None:
        """Print the tables.

        Raises:
            OptionError: no name holds the word.
        """
        tables = self._tables()
        shown = {
            head: {name: line for name, line in lines.items() if self._fits(name)} for head, lines in tables.items()
        }
        foreign = self._foreign()
        fitting = [name for name in foreign if self._fits(name)]
        if not fitting and not any(shown.values()):
            known = [name for lines in tables.values() for name in lines]
            hint = nearest(str(self.match), [*known, *(name.partition("/")[2] for name in foreign)])
            raise OptionError(f"No {_LISTED[self.what]} has {self.match!r} in its name.{hint}")
        for head, lines in shown.items():
            if lines:
                show_table(head, lines)
        for name in fitting:
            console.print(escape(name), soft_wrap=True)
        if self.what == "all" and self.match is None:
            console.print("and any timm or torchvision name: [bold]heedmap list models --match resnet[/]")
        show_next("heedmap train DIR --model NAME --attention NAME")

    def _fits(self, name: str) -> bool:
        return self.match is None or self.match in name

    def _tables(self) -> dict[str, dict[str, str]]:
        """Head of the table -> name -> sentence."""
        from heedmap.attention import ATTENTIONS
        from heedmap.backbones import OWN_BACKBONES
        from heedmap.data.named import NAMED

        scenes = {"digit-scenes": "embedded: real handwritten digits among clutter, boxes known; no download"}
        tables = {
            "attention": {name: kind.sentence for name, kind in ATTENTIONS.items()},
            "data": {**scenes, **dict.fromkeys(NAMED, "through torchvision, from --root")},
            "model": OWN_BACKBONES,
        }
        wanted = {"attentions": "attention", "sets": "data", "models": "model"}
        return tables if self.what == "all" else {wanted[self.what]: tables[wanted[self.what]]}

    def _foreign(self) -> Sequence[str]:
        """The names of timm and torchvision, which take a while to ask for."""
        if self.what not in ("all", "models") or (self.what == "all" and self.match is None):
            return ()
        from heedmap.backbones.foreign import list_foreign

        return list_foreign()


_LISTED = {"all": "model, attention or set", "models": "model", "attentions": "attention", "sets": "set"}


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

# The help of train is long; what most people need comes first.
TRAIN_GROUPS = {
    "run": ("out", "config", "resume", "seed"),
    "model": ("model", "attention", "weights", "head", "taps", "pretrained"),
    "pictures": ("image_size", "augment", "flip", "cutmix", "validation", "test", "allow_unreadable"),
    "training": (
        *("epochs", "batch_size", "optimizer", "learning_rate", "weight_decay", "schedule"),
        *("label_smoothing", "averaging", "patience"),
    ),
    "machine": ("precision", "workers", "memory", "save_every", "tensorboard", "root", "download"),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; exit with 2 for what the user can mend, 130 when interrupted."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        _run(words)
        sys.stdout.flush()
    except Stopped as stop:  # as the user wished
        complaints.print(escape(str(stop)), soft_wrap=True)
        raise SystemExit(130) from None
    except HeedmapError as error:
        complaints.print(f"[red]error:[/] {escape(' '.join(str(error).split()))}", soft_wrap=True)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        complaints.print("Stopped.")
        raise SystemExit(130) from None
    except BrokenPipeError:  # the reader of a pipe has seen enough; Python must not complain of it again on its way out
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0) from None


def _run(words: list[str]) -> None:
    if not words or words[0] in ("-h", "--help", "help"):
        _overview()
        return
    if words[0] in ("-V", "--version"):
        console.print(f"heedmap {__version__}")
        return
    if words[0] not in COMMANDS:
        known = ", ".join(COMMANDS)
        raise OptionError(f"Unknown command {words[0]!r}; there are {known}.{nearest(words[0], COMMANDS)}")
    name, rest = words[0], words[1:]
    if "-h" in rest or "--help" in rest:
        show_help(COMMANDS[name], name, TRAIN_GROUPS if name == "train" else {})
        return
    # A config file gives the values of what is not named.
    default: Any = _from_config(rest) if name == "train" else None
    made: Any = parse(COMMANDS[name], name, rest, default)
    made.work()


def _overview() -> None:
    console.print(f"[bold]heedmap {__version__}[/]: image classifiers whose answer is made out of an attention map")
    lines = {f"heedmap {name}": (command.__doc__ or "").splitlines()[0] for name, command in COMMANDS.items()}
    show_table("command", lines)
    console.print("Options of a command: heedmap COMMAND --help")


def _from_config(words: list[str]) -> Train | None:
    """The values that a config file gives, where one is named."""
    for place, word in enumerate(words):
        if word == "--config" and place + 1 < len(words):
            return Train(**read_config(words[place + 1]))
        if word.startswith("--config="):
            return Train(**read_config(word.removeprefix("--config=")))
    return None
