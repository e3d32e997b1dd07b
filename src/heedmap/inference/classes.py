"""Find a class by the name or the number that a user wrote."""

from collections.abc import Sequence

from heedmap.errors import OptionError, nearest


def class_index(classes: Sequence[str], target: str | int) -> int:
    """Return the place of a class, given by name or number.

    Raises:
        OptionError: there is no such class.
    """
    if isinstance(target, str):
        if target not in classes:
            some = ", ".join(classes[:12]) + (f" and {len(classes) - 12} more" if len(classes) > 12 else "")
            raise OptionError(f"No class {target!r}; this classifier knows {some}.{nearest(target, classes)}")
        return list(classes).index(target)
    if not 0 <= target < len(classes):
        raise OptionError(f"Class {target} does not exist; this classifier knows {len(classes)}, from 0 on.")
    return target
