"""The commands: one file each, a dataclass whose fields are the command's options and whose ``work`` does it.

Nothing heavy is imported before a command works, so that ``--help`` and errors of usage answer at once.
"""

from heedmap.commands.audit import AuditData
from heedmap.commands.compare import Compare
from heedmap.commands.demo import Demo
from heedmap.commands.evaluate import Evaluate
from heedmap.commands.explore import Explore
from heedmap.commands.export import Export
from heedmap.commands.list import List
from heedmap.commands.pack import Pack
from heedmap.commands.predict import Predict
from heedmap.commands.serve import Serve
from heedmap.commands.train import Train
from heedmap.commands.visualize import Visualize

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
