"""The commands: one file each, a dataclass whose fields are the command's options and whose ``work`` does it.

Heavy packages, and the rooms of heedmap that need them, are imported when a command works, so that ``--help`` and
usage errors are instant.
"""

from heedmap.cli.commands.audit import AuditData
from heedmap.cli.commands.compare import Compare
from heedmap.cli.commands.demo import Demo
from heedmap.cli.commands.evaluate import Evaluate
from heedmap.cli.commands.explore import Explore
from heedmap.cli.commands.export import Export
from heedmap.cli.commands.list import List
from heedmap.cli.commands.pack import Pack
from heedmap.cli.commands.predict import Predict
from heedmap.cli.commands.serve import Serve
from heedmap.cli.commands.train import Train
from heedmap.cli.commands.visualize import Visualize

COMMANDS = {
    "demo": Demo,
    "train": Train,
    "visualize": Visualize,
    "predict": Predict,
    "evaluate": Evaluate,
    "compare": Compare,
    "export": Export,
    "serve": Serve,
    "explore": Explore,
    "audit": AuditData,
    "pack": Pack,
    "list": List,
}
