"""Options: dataclasses that are the command's flags, the YAML file's keys and the Python arguments at once."""

from heedmap.config.checks import Options, Range, check_range, class_values, split_names
from heedmap.config.options import (
    DataOptions,
    ExportOptions,
    ImageOptions,
    MachineOptions,
    MapOptions,
    ModelOptions,
    ObjectOptions,
    RunOptions,
    TrainingOptions,
    TrainOptions,
    free_name,
    known_options,
    read_config,
    read_yaml,
)
from heedmap.errors import counted

__all__ = [
    "DataOptions",
    "ExportOptions",
    "ImageOptions",
    "MachineOptions",
    "MapOptions",
    "ModelOptions",
    "ObjectOptions",
    "Options",
    "Range",
    "RunOptions",
    "TrainOptions",
    "TrainingOptions",
    "check_range",
    "class_values",
    "counted",
    "free_name",
    "known_options",
    "read_config",
    "read_yaml",
    "split_names",
]
