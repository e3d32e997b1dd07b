"""How a command is told what to do: its fields are its options, its docstring is their help.

tyro turns words into the command's dataclass. The help is drawn here, so that options stand in groups and a default
that depends on the data is told in words; and what cannot be meant is refused in one line.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import io
import re
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar, cast

import tyro
from rich.markup import escape

from heedmap.cli.console import console, show_table
from heedmap.errors import OptionError, nearest

Command = TypeVar("Command")
Field = dataclasses.Field[Any]

_FRAME = re.compile(r"[╭╮╰╯│─]+|-{3,}")  # plain dashes where the terminal is not one of UTF-8
_VALUES = {int: "N", float: "X", str: "TEXT"}


def parse(command: type[Command], name: str, words: Sequence[str], default: Command | None = None) -> Command:
    """Make the command that the words mean.

    Args:
        command: a dataclass.
        name: what the user calls it.
        words: what stands behind its name.
        default: gives the values of options that are not named.

    Raises:
        OptionError: an unknown option, with the nearest right one; a value that is missing or of the wrong kind.
    """
    _check_flags(command, name, words)
    said = io.StringIO()
    config = (tyro.conf.DisallowNone, tyro.conf.HelptextFromCommentsOff)
    try:
        with contextlib.redirect_stderr(said):
            made = tyro.cli(command, prog=f"heedmap {name}", args=list(words), default=default, config=config)
    except SystemExit:
        raise OptionError(f"{_plainly(_one_line(said.getvalue()), command, name)} See heedmap {name} --help.") from None
    return cast(Command, made)


def show_help(command: type, name: str, groups: Mapping[str, Sequence[str]]) -> None:
    """Print what a command does and all its options; those that no group names come last."""
    told = _sentences(command)
    hints = typing.get_type_hints(command, include_extras=True)
    fields = {field.name: field for field in dataclasses.fields(command)}
    given = {_place(fields[each], hints[each]): told[each] for each in fields if _is_positional(hints[each])}
    options = [each for each in fields if not _is_positional(hints[each])]
    grouped = {each for members in groups.values() for each in members}
    rest = [each for each in options if each not in grouped]
    shown = {**groups, "more options" if groups else "options": rest}
    console.print(f"[bold]{escape(' '.join(['heedmap', name, *given]))}[/] --OPTION ...")
    console.print(escape((inspect.getdoc(command) or "").splitlines()[0]))
    tables = {title: {_flag(fields[each], hints[each]): each for each in members} for title, members in shown.items()}
    width = max(len(word) for lines in (given, *tables.values()) for word in lines)
    if given:
        console.print()
        show_table("", given, width)
    for title, lines in tables.items():
        if lines:
            told_here = {flag: _told(fields[each], hints[each], told[each]) for flag, each in lines.items()}
            console.print()
            show_table(title, told_here, width)


def _check_flags(command: type, name: str, words: Sequence[str]) -> None:
    fields = [_word(field) for field in dataclasses.fields(command)]
    known = [f"--{field}" for field in fields] + [f"--no-{field}" for field in fields]
    hints = typing.get_type_hints(command, include_extras=True)
    several = {f"--{_word(each)}" for each in dataclasses.fields(command) if _takes_several(hints[each.name])}
    seen: set[str] = set()
    for word in words:
        flag = word.split("=")[0].replace("_", "-")
        if word == "--":
            return
        if flag.startswith("--") and flag not in known:
            # The dashes, which all have in common, would make anything alike.
            hint = nearest(flag[2:], [each[2:] for each in known], cutoff=0.6).replace("'", "'--", 1)
            raise OptionError(
                f"Unknown option {word.split('=')[0]} of heedmap {name}.{hint} heedmap {name} --help lists them."
            )
        if flag in seen & several:  # the last one would win, and the others be forgotten
            raise OptionError(f"{flag} is given twice; name all after one: {flag} A B.")
        seen.add(flag)


def _one_line(said: str) -> str:
    """What tyro's framed sheet says first: the lines between its title and the first rule or empty line."""
    lines = [_FRAME.sub(" ", line).strip() for line in said.splitlines()[1:]]
    while lines and not lines[0]:
        lines.pop(0)
    first = lines[: lines.index("")] if "" in lines else lines
    return " ".join(" ".join(first).replace("no type matching", "no").split())


def _plainly(said: str, command: type, name: str) -> str:
    """The words of this package for a sentence of tyro's; one that is not known is passed on."""
    if said.startswith("Missing from"):
        hints = typing.get_type_hints(command, include_extras=True)
        fields = {field.name: field for field in dataclasses.fields(command)}
        places = [_place(fields[each], hints[each]) for each in fields if _is_positional(hints[each])]
        return f"{places[0]} is missing; the command is `heedmap {name} {' '.join(places)}`."
    if found := re.match(r"Error parsing (\S+): no (INT|FLOAT)\S* could be instantiated from \[(.*)\]", said):
        flag, kind, value = found.groups()
        return f"{flag} needs {'a whole number' if kind == 'INT' else 'a number'}, not {value}."
    if found := re.match(r"invalid choice (.+) for argument '(.+?)'\. Expected one of \((.*)\)", said):
        value, flag, listed = found.groups()
        choices = sorted(set(re.findall(r"'(.+?)'", listed)) - {"None"})
        flag = flag if flag.startswith("--") else flag.upper()
        return f"{flag} cannot be {value}; give one of {', '.join(choices)}.{nearest(value.strip(chr(39)), choices)}"
    if found := re.match(r"Missing value for argument '(.+?)'", said):
        return f"{found[1]} needs a value."
    if found := re.match(r"Unrecognized options: (.+)", said):
        return f"heedmap {name} does not know what to do with {found[1].rstrip('.')}."
    return said if said.endswith((".", "?", "!")) else f"{said}."


def _sentences(command: type) -> dict[str, str]:
    """The help of each field, from the docstrings of the command and of what it is made from."""
    found: dict[str, str] = {}
    for kind in reversed(command.__mro__):
        listed = (inspect.getdoc(kind) or "").partition("Attributes:\n")[2]
        for name, text in re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", listed, re.MULTILINE):
            found[name] = " ".join(text.replace("``", "").split())
    return found


def _is_positional(hint: Any) -> bool:
    return tyro.conf.Positional in getattr(hint, "__metadata__", ())


def _place(field: Field, hint: Any) -> str:
    word = field.name.upper()
    many = f"{word} ..." if _takes_several(hint) else word
    return many if field.default is dataclasses.MISSING else f"[{many}]"


def _takes_several(hint: Any) -> bool:
    return tuple in {typing.get_origin(each) for each in _kinds(hint)}


def _kinds(hint: Any) -> tuple[Any, ...]:
    """The types that a value may have, without None and without annotation."""
    inner = hint.__origin__ if hasattr(hint, "__metadata__") else hint
    parts = typing.get_args(inner) if type(None) in typing.get_args(inner) else (inner,)
    return tuple(part for part in parts if part is not type(None))


def _word(field: Field) -> str:
    """What the user writes for a field; one that Python keeps for itself has an underscore at its end (``with_``)."""
    return field.name.rstrip("_").replace("_", "-")


def _flag(field: Field, hint: Any) -> str:
    word, kind = _word(field), _kinds(hint)[0]
    if kind is bool:
        return f"--{word}" if field.default is False else f"--{word}, --no-{word}"
    value = {Literal: "NAME", tuple: "TEXT ..."}.get(typing.get_origin(kind)) or _VALUES[kind]
    return f"--{word} {value}"


def _told(field: Field, hint: Any, sentence: str) -> str:
    choices = typing.get_args(_kinds(hint)[0]) if typing.get_origin(_kinds(hint)[0]) is Literal else ()
    named = f" One of: {', '.join(choices)}." if choices and any(each not in sentence for each in choices) else ""
    if field.default is None or field.default is False or field.default == ():
        return sentence + named
    value = " ".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
    return f"{sentence}{named} Default: {'yes' if value is True else value}."
