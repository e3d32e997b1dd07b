"""The command line: picks the command, and turns errors into one line and an exit status."""

import errno
import itertools
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from rich.markup import escape

from heedmap._version import __version__
from heedmap.cli.commands import COMMANDS
from heedmap.cli.console import complaints, console, say, show_table
from heedmap.cli.parser import parse, show_help
from heedmap.errors import HeedmapError, OptionError, Stopped, nearest
from heedmap.system import term_as_interrupt


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; exit with status 2 for an error that the user can fix, 130 when interrupted."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with term_as_interrupt():
            _run(words)
        sys.stdout.flush()
    except (Stopped, KeyboardInterrupt) as stop:
        say(escape(str(stop)) or "Stopped.", complaints)
        raise SystemExit(130) from None
    except HeedmapError as error:
        _fail(str(error))
    except BrokenPipeError:  # the reader of a pipe has closed it; but work that was cut short is no success
        _forget_output()
        only_prints = not words or words[0] not in COMMANDS or words[0] == "list" or {"-h", "--help"} & set(words)
        raise SystemExit(0 if only_prints else 1) from None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            name = str(error.filename)
            _fail(f"The name {name if len(name) < 50 else f'{name[:40]}...'!r} is too long for a file.")
        if not _is_of_output(error):
            raise
        _forget_output()
        _fail(f"Standard output cannot be written: {error.strerror}.")


def _fail(message: str) -> NoReturn:
    say(f"[red]error:[/] {escape(' '.join(message.split()))}", complaints)
    raise SystemExit(2) from None


def _is_of_output(error: OSError) -> bool:
    """Return whether standard output is what cannot be written: then it fails again."""
    try:
        sys.stdout.write("\n")  # the failed write may be gone from the buffer
        sys.stdout.flush()
    except OSError as again:
        return again.errno == error.errno
    return False


def _forget_output() -> None:
    """Keep Python from writing the rest, and failing again, at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(words: list[str]) -> None:
    if not words or words[0] in ("-h", "--help", "help"):
        console.print(f"[bold]heedmap {__version__}[/]: image classifiers that predict from an attention map")
        lines = {f"heedmap {name}": (command.__doc__ or "").splitlines()[0] for name, command in COMMANDS.items()}
        show_table("command", lines)
        console.print("Options of a command: heedmap COMMAND --help")
        return
    name, rest = words[0], words[1:]
    if name in ("-V", "--version"):
        console.print(f"heedmap {__version__}")
        return
    if name not in COMMANDS:
        raise OptionError(f"Unknown command {name!r}; there are {', '.join(COMMANDS)}.{nearest(name, COMMANDS)}")
    command = COMMANDS[name]
    if "-h" in rest or "--help" in rest:
        show_help(command, name)
        return
    parse(command, name, rest, _default(command, rest) if hasattr(command, "from_files") else None).work()


def _default(command: Any, words: list[str]) -> Any:
    """Return the values of options that are not named, from the files that the words name."""
    named: dict[str, str] = {}
    for word, following in itertools.zip_longest(words, words[1:]):
        flag, equals, value = word.partition("=")
        if flag in ("--config", "--budget", "--resume") and (equals or following is not None):
            named.setdefault(flag[2:], value if equals else str(following))
    return command.from_files(named)
