"""From a command's words to its dataclass, whose fields are its options and whose docstrings are their help.

tyro parses. Its error sheet is cut down to its first sentence, and the help is drawn here: options stand in groups, one
for each class that the command inherits from. An option that several commands share has its help in its annotation.
"""

import contextlib
import dataclasses
import inspect
import io
import re
import typing
from collections.abc import Sequence
from typing import Any, TypeVar, cast

import tyro
from rich.markup import escape

from heedmap.cli.console import bold, console, show_table
from heedmap.config.checks import Options, choices_of, is_tuple, kinds, option_hints
from heedmap.errors import OptionError

Command = TypeVar("Command")
Field = dataclasses.Field[Any]


def parse(command: type[Command], name: str, words: Sequence[str], default: Command | None = None) -> Command:
    """Return the command, a dataclass, that the words behind its name describe; ``default`` has the other values.

    An OptionError is raised for an unknown option, or a value that is missing or of the wrong kind.
    """
    flags = [word.split("=")[0].replace("_", "-") for word in words]
    for field in dataclasses.fields(cast(Any, command)):
        flag = f"--{_word(field)}"
        if flags.count(flag) > 1 and is_tuple(option_hints(command)[field.name]):  # tyro would forget all but the last
            raise OptionError(f"{flag} is given twice; name all after one: {flag} A B.")
    sheet = io.StringIO()
    config = (tyro.conf.DisallowNone, tyro.conf.HelptextFromCommentsOff)
    try:
        with contextlib.redirect_stderr(sheet):
            made = tyro.cli(command, prog=f"heedmap {name}", args=list(words), default=default, config=config)
    except SystemExit:
        raise OptionError(f"{_sentence(sheet.getvalue())} See heedmap {name} --help.") from None
    return cast(Command, made)


def _sentence(sheet: str) -> str:
    """Return the first paragraph of tyro's framed sheet, and the options that it proposes."""
    lines = [line.strip("│╰╯ ") for line in sheet.splitlines()[1:]]  # the first is its title
    text = "\n".join("" if set(line) <= set("─-") else line for line in lines).strip()
    proposed = text.partition("\n\nPerhaps you meant:\n")[2].partition("\n\n")[0]
    flags = ", ".join(dict.fromkeys(re.findall(r"^--[\w-]+", proposed, re.MULTILINE)))
    sentence = " ".join(text.partition("\n\n")[0].split("\n")).rstrip(".")
    return f"{sentence}.{f' Perhaps you meant {flags}?' if flags else ''}"


def show_help(command: type, command_name: str) -> None:
    """Print what a command does and all its options."""
    sentences, hints = _sentences(command), option_hints(command)
    fields = {field.name: field for field in dataclasses.fields(command)}
    positional = [name for name in fields if tyro.conf.Positional in getattr(hints[name], "__metadata__", ())]
    tables = {"": {_place(fields[name], hints[name]): sentences[name] for name in positional}}
    for title, names in _groups(command, positional).items():
        tables[title] = {
            _flag(fields[name], hints[name]): _help(fields[name], hints[name], sentences[name]) for name in names
        }
    console.print(f"{bold(' '.join(['heedmap', command_name, *tables['']]))} --OPTION ...")
    console.print(escape((inspect.getdoc(command) or "").splitlines()[0]))
    width = max(len(word) for lines in tables.values() for word in lines)
    for title, lines in tables.items():
        if lines:
            console.print()
            show_table(title, lines, width)


def _groups(command: type, positional: Sequence[str]) -> dict[str, list[str]]:
    """Return the options by the class that they come from: those of the command first, ``DataOptions`` as ``data``."""
    own = list(inspect.get_annotations(command))
    groups = {"options": own}
    for kind in reversed(command.__mro__[1:]):
        if dataclasses.is_dataclass(kind) and kind != Options:
            names = [name for name in inspect.get_annotations(kind) if name not in own]
            groups[kind.__name__.removesuffix("Options").lower()] = names
    return {title: [name for name in names if name not in positional] for title, names in groups.items()}


def _sentences(command: type) -> dict[str, str]:
    """Return the help of each field, from its annotation or the docstrings of the command and its base classes."""
    hints = option_hints(command).items()
    sentences = {name: part for name, hint in hints for part in typing.get_args(hint) if isinstance(part, str)}
    for kind in reversed(command.__mro__):
        listed = (inspect.getdoc(kind) or "").partition("Attributes:\n")[2]
        for name, text in re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", listed, re.MULTILINE):
            sentences[name] = " ".join(text.replace("``", "").split())
    return sentences


def _word(field: Field) -> str:
    """Return what the user writes for a field; one that Python reserves ends in an underscore (``with_``)."""
    return field.name.rstrip("_").replace("_", "-")


def _place(field: Field, hint: Any) -> str:
    word = f"{field.name.upper()} ..." if is_tuple(hint) else field.name.upper()
    return word if field.default is dataclasses.MISSING else f"[{word}]"


def _flag(field: Field, hint: Any) -> str:
    word, (kind,) = _word(field), kinds(hint)
    if kind is bool:
        return f"--{word}" if field.default is False else f"--{word}, --no-{word}"
    value = "NAME" if choices_of(hint) else {int: "N", float: "X"}.get(kind, "TEXT")
    return f"--{word} {value}{' ...' if is_tuple(hint) else ''}"


def _help(field: Field, hint: Any, sentence: str) -> str:
    choices = choices_of(hint)
    named = f" One of: {', '.join(choices)}." if any(each not in sentence for each in choices) else ""
    if field.default is None or field.default is False or field.default == ():
        return sentence + named
    value = " ".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
    return f"{sentence}{named} Default: {'yes' if value is True else value}."
