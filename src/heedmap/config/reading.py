"""Options from YAML files."""

import contextlib
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from heedmap.config.checks import convert, kinds, option_hints
from heedmap.config.options import TrainOptions
from heedmap.errors import OptionError, nearest


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML file of ``name: value`` lines; an empty one has none.

    Raises:
        OptionError: no such file, or something else in it.
    """
    import yaml

    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise OptionError(f"Config file {path} cannot be read: {error.strerror}.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise OptionError(f"Config file {path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict | None):
        raise OptionError(f"Config file {path} must hold 'name: value' lines; it holds a {type(content).__name__}.")
    return content or {}


def read_config(path: str | Path) -> dict[str, Any]:
    """Read a YAML file of options; keys may be written with - or _. A run's config.yaml is one too.

    Raises:
        OptionError: no such file, not a mapping, a key that no option has, or a value of the wrong type.
    """
    content = read_yaml(path)
    if "schema" in content and isinstance(content.get("options"), dict):  # a run's config.yaml: train that again
        content = content["options"]
    if isinstance(content.get("variants"), dict):
        raise OptionError(f"{path} is an experiment with variants: take `heedmap compare --config {path}`.")
    return known_options(content, where=f" in {path}")


def known_options(values: Mapping[Any, Any], where: str = "") -> dict[str, Any]:
    """Return ``values`` under the names of options of training, each converted to the option's type.

    Raises:
        OptionError: an unknown name, with the nearest right one, or a value of the wrong type.
    """
    hints, names = option_hints(TrainOptions), [field.name for field in dataclasses.fields(TrainOptions)]
    converted = {}
    for key, value in values.items():
        name = str(key).replace("-", "_")
        if name not in names:
            raise OptionError(f"Unknown option {key!r}{where}.{nearest(name, names)}")
        for kind in kinds(hints[name]):
            if kind in (int, float) and isinstance(value, str):  # YAML reads 1e-3, without a point, as text
                with contextlib.suppress(ValueError):
                    value = kind(value)
        converted[name] = convert(name, value, hints[name], where)
    return converted
