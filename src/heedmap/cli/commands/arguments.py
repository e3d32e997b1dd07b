"""Positional arguments that several commands share."""

from typing import Annotated

import tyro

RunFolder = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
Images = Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IMAGES")]
DataFolder = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]
OutFolder = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
