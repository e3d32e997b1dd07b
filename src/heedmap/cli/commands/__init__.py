"""The commands: dataclasses whose fields are the command's options and whose ``work`` does it.

Heavy packages, and the rooms of heedmap that need them, are imported when a command works, so that ``--help`` and
usage errors are instant.
"""

from typing import Any

from heedmap.cli.commands.apps import Explore, Serve
from heedmap.cli.commands.compare import Compare
from heedmap.cli.commands.evaluate import Evaluate
from heedmap.cli.commands.export import Export
from heedmap.cli.commands.folders import AuditData, Pack
from heedmap.cli.commands.list import List
from heedmap.cli.commands.predict import Predict
from heedmap.cli.commands.train import Demo, Train
from heedmap.cli.commands.visualize import Visualize

COMMANDS: dict[str, Any] = {"demo": Demo, "train": Train, "visualize": Visualize, "predict": Predict}
COMMANDS |= {"evaluate": Evaluate, "compare": Compare, "export": Export, "serve": Serve, "explore": Explore}
COMMANDS |= {"audit": AuditData, "pack": Pack, "list": List}
