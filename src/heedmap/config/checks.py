"""Options that check themselves: each field's type, choices and range stand in its annotation; lists of words."""

import numbers
import os
import typing
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from heedmap.errors import OptionError, nearest


class Range(NamedTuple):
    """The values that a number may have, both ends included; the annotation is ``Annotated[int, Range(1, 9)]``."""

    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Options:
    """Base of dataclasses of options: an OptionError names what is of a wrong type, out of range or no choice."""

    def __post_init__(self) -> None:
        for name, hint in option_hints(type(self)).items():
            value = convert(name, getattr(self, name), hint)  # Python code may pass anything
            object.__setattr__(self, name, value)
            choices = choices_of(hint)
            for word in value if isinstance(value, tuple) else (value,):
                if isinstance(word, str) and choices and word not in choices:
                    raise OptionError(f"{name} = {word!r} is not one of {', '.join(choices)}.{nearest(word, choices)}")
                if isinstance(word, str) and "\0" in word:
                    raise OptionError(f"{name} = {word!r} contains a zero byte, which no file name can.")
            for limits in typing.get_args(hint):
                if isinstance(limits, Range):
                    check_range(name, value, *limits)


def option_hints(options: type) -> dict[str, Any]:
    """Return the annotations of the fields, by name."""
    return typing.get_type_hints(options, include_extras=True)


def check_range(name: str, value: float | None, low: float, high: float) -> None:
    """Raise an :class:`OptionError` where a number does not lie from ``low`` to ``high``; None is allowed."""
    if value is not None and not (low <= value <= high):
        ends = " to ".join(str(int(end)) if end == int(end) else f"{end:g}" for end in (low, high))
        raise OptionError(f"{name} = {value!r} is out of range: give a value from {ends}.")


def kinds(hint: Any) -> tuple[Any, ...]:
    """Return the types that a value may have, without None and without annotations."""
    inner, parts = _alternatives(hint)
    return tuple(part for part in parts if part is not type(None)) if type(None) in parts else (inner,)


def _alternatives(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """Return an annotation without its metadata, and the parts of that."""
    inner = hint.__origin__ if hasattr(hint, "__metadata__") else hint
    return inner, typing.get_args(inner)


def is_tuple(hint: Any) -> bool:
    """Return whether an option takes several values."""
    return any(typing.get_origin(kind) is tuple for kind in kinds(hint))


def choices_of(hint: Any) -> tuple[str, ...]:
    """Return the words that an option may be, or each of its words where it takes several; empty for any."""
    (kind,) = kinds(hint)
    kind = typing.get_args(kind)[0] if typing.get_origin(kind) is tuple else kind
    return typing.get_args(kind) if typing.get_origin(kind) is Literal else ()


def convert(name: str, value: Any, hint: Any, where: str = "") -> Any:
    """Return ``value`` as the type of the option ``name``, which is annotated with ``hint``.

    Raises:
        OptionError: it is of another type; the message says ``where`` it was given, as `` in my.yaml``.
    """
    (kind,) = kinds(hint)
    number = {int: numbers.Integral, float: numbers.Real}.get(kind)
    if value is None and type(None) in _alternatives(hint)[1]:
        return None
    if typing.get_origin(kind) is tuple and isinstance(value, str | list | tuple):
        return (value,) if isinstance(value, str) else tuple(str(item) for item in value)
    if typing.get_origin(kind) is Literal and isinstance(value, str):
        return value
    if kind is str and isinstance(value, str | os.PathLike):
        return os.fspath(value)
    if kind is bool and isinstance(value, bool):
        return value
    if number and not isinstance(value, bool) and isinstance(value, number):
        return kind(value)
    plain = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
    choices = ", ".join(choices_of(hint))
    give = f"one of {choices}" if choices else plain.get(kind, "a list of names")
    raise OptionError(f"Option {name!r}{where} cannot be {value!r}; give {give}.")


def split_names(option: str, words: Iterable[str]) -> tuple[str, ...]:
    """Return the names in an option's words, which spaces or commas separate; an OptionError for words without any."""
    words = tuple(words)
    names = tuple(name.strip() for word in words for name in word.split(",") if name.strip())
    if words and not names:  # such as of a shell's empty variable
        raise OptionError(f"--{option} names nothing; leave it out, or name something.")
    return names


def class_values(words: Iterable[str]) -> dict[str, int] | None:
    """Return classes and their numbers, given as ``cat=1``, or None; an OptionError for another form or a repeat."""
    values: dict[str, int] = {}
    for word in words:
        name, _, number = word.rpartition("=")
        if not name or not number.isdecimal() or name in values:
            raise OptionError(f"class_values cannot hold {word!r}; give each class once, such as cat=1.")
        values[name] = int(number)
    return values or None
