"""Options that check themselves: each field's type, choices and range stand in its annotation."""

import numbers
import os
import typing
from dataclasses import dataclass
from typing import Any, Literal

from heedmap.errors import OptionError, nearest


@dataclass(frozen=True)
class Range:
    """The values that a number may have, both ends included; the annotation is ``Annotated[int, Range(1, 9)]``."""

    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Options:
    """Base of dataclasses of options: refuses values of a wrong type, out of range or not among the choices.

    Raises:
        OptionError: there is such a value; the message names the option, the value and what it can be.
    """

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
                    check_range(name, value, limits.low, limits.high)


def option_hints(options: type) -> dict[str, Any]:
    """Return the annotations of the fields, by name."""
    return typing.get_type_hints(options, include_extras=True)


def check_range(name: str, value: float | None, low: float, high: float) -> None:
    """Check that a number lies from ``low`` to ``high``; None is allowed.

    Raises:
        OptionError: it does not.
    """
    if value is not None and not (low <= value <= high):
        ends = " to ".join(str(int(end)) if end == int(end) else f"{end:g}" for end in (low, high))
        raise OptionError(f"{name} = {value!r} is out of range: give a value from {ends}.")


def kinds(hint: Any) -> tuple[Any, ...]:
    """Return the types that a value may have, without None and without annotations."""
    parts = typing.get_args(_inner(hint)) if _may_be_none(hint) else (_inner(hint),)
    return tuple(part for part in parts if part is not type(None))


def _inner(hint: Any) -> Any:
    return hint.__origin__ if hasattr(hint, "__metadata__") else hint


def _may_be_none(hint: Any) -> bool:
    return type(None) in typing.get_args(_inner(hint))


def is_tuple(hint: Any) -> bool:
    """Return whether an option takes several values."""
    return any(typing.get_origin(kind) is tuple for kind in kinds(hint))


def choices_of(hint: Any) -> tuple[str, ...]:
    """Return the words that an option may be, or each of its words where it takes several; empty for any."""
    (kind,) = kinds(hint)
    kind = typing.get_args(kind)[0] if typing.get_origin(kind) is tuple else kind
    return typing.get_args(kind) if typing.get_origin(kind) is Literal else ()


def convert(name: str, value: Any, hint: Any, where: str = "") -> Any:
    """Return ``value`` as the type that an option has.

    Args:
        name: of the option.
        value: what was given.
        hint: the option's annotation.
        where: where it was given, as `` in my.yaml``; for the message.

    Raises:
        OptionError: it is of another type.
    """
    (kind,) = kinds(hint)
    number = {int: numbers.Integral, float: numbers.Real}.get(kind)
    if value is None and _may_be_none(hint):
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
    choices = choices_of(hint)
    give = f"one of {', '.join(choices)}" if choices else plain.get(kind, "a list of names")
    raise OptionError(f"Option {name!r}{where} cannot be {value!r}; give {give}.")
