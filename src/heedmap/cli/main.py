"""The command line: picks the command, and turns errors into one line and an exit status."""

from __future__ import annotations

import dataclasses
import errno
import os
import sys
from collections.abc import Sequence
from typing import Any

from rich.markup import escape

from heedmap._version import __version__
from heedmap.cli.commands import COMMANDS
from heedmap.cli.commands.compare import Compare
from heedmap.cli.commands.train import Train
from heedmap.cli.console import complaints, console, show_table
from heedmap.cli.parser import parse, show_help
from heedmap.config import read_config
from heedmap.errors import HeedmapError, OptionError, Stopped, nearest
from heedmap.system import term_as_interrupt

# The help of train is long; what most people need comes first.
TRAIN_GROUPS = {
    "run": ("out", "config", "resume", "seed"),
    "model": ("model", "attention", "attention_weights", "head", "taps", "pretrained"),
    "images": ("image_size", "augment", "shift", "flip", "cutmix", "validation", "test", "allow_unreadable"),
    "training": (
        *("recipe", "epochs", "batch_size", "optimizer", "learning_rate", "weight_decay", "schedule"),
        *("label_smoothing", "averaging", "patience"),
    ),
    "maps": ("combine", "map_supervision", "map_consistency", "map_entropy"),
    "annotations": ("annotations", "annotation_format", "same_class", "mask_kind", "class_values", "parts"),
    "machine": (
        *("precision", "workers", "memory", "cache", "cache_size", "save_every", "tensorboard", "root", "download"),
    ),
}
COMPARE_GROUPS = {
    "comparison": ("variants", "seeds", "out", "parallel", "background", "resume", "config", "budget", "seed"),
    **{title: members for title, members in TRAIN_GROUPS.items() if title != "run"},
}
GROUPS = {"train": TRAIN_GROUPS, "compare": COMPARE_GROUPS}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; exit with 2 for what the user can mend, 130 when interrupted."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with term_as_interrupt():
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
    except BrokenPipeError:  # the reader of a pipe has seen enough; but work that was cut short is no success
        _forget_output()
        raise SystemExit(0 if _only_tells(words) else 1) from None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            told = f"The name {_short(error.filename)} is too long for a file."
            complaints.print(f"[red]error:[/] {escape(told)}", soft_wrap=True)
            raise SystemExit(2) from None
        if not _is_of_output(error):
            raise
        _forget_output()
        complaints.print(f"[red]error:[/] Standard output cannot be written: {error.strerror}.", soft_wrap=True)
        raise SystemExit(2) from None


def _short(name: object) -> str:
    text = str(name)
    return repr(text if len(text) < 50 else f"{text[:40]}...")


def _only_tells(words: list[str]) -> bool:
    return not words or words[0] not in COMMANDS or words[0] == "list" or "-h" in words or "--help" in words


def _is_of_output(error: OSError) -> bool:
    """Whether standard output is what cannot be written: it then says so again."""
    try:
        sys.stdout.write("\n")  # what failed before may have been thrown away, and nothing is left to fail again
        sys.stdout.flush()
    except OSError as again:
        return again.errno == error.errno
    return False


def _forget_output() -> None:
    """Keep Python from writing what is left, and complaining of it, on its way out."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


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
        show_help(COMMANDS[name], name, GROUPS.get(name, {}))
        return
    default: Any = _values(name, rest) if name in GROUPS else None
    made: Any = parse(COMMANDS[name], name, rest, default)
    made.work()


def _overview() -> None:
    console.print(f"[bold]heedmap {__version__}[/]: image classifiers whose answer is made out of an attention map")
    lines = {f"heedmap {name}": (command.__doc__ or "").splitlines()[0] for name, command in COMMANDS.items()}
    show_table("command", lines)
    console.print("Options of a command: heedmap COMMAND --help")


def _values(name: str, words: list[str]) -> Train | Compare | None:
    """The values of what is not named: those of a config file, over those of a run to go on with."""
    said: dict[str, str] = {}
    for place, word in enumerate(words):
        for flag in ("config", "budget", "resume"):
            if word == f"--{flag}" and place + 1 < len(words):
                said.setdefault(flag, words[place + 1])
            if word.startswith(f"--{flag}="):
                said.setdefault(flag, word.partition("=")[2])
    if name == "compare":
        return Compare.from_config(said) if "config" in said else None
    values: dict[str, Any] = {}
    if "resume" in said:
        from heedmap.runs import Run

        values = dataclasses.asdict(Run.open(said["resume"], finished=False).options)
    if "config" in said:
        values |= read_config(said["config"])
    return Train(**values) if values else None
