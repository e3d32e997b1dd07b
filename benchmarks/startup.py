"""How long a person waits for the command line to answer: `heedmap --help`, an error of usage, `import heedmap`."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

from benchmarks.measuring import alternate, keep, spread

PREDICTIONS = {
    "python -c pass": ["-c", "pass"],
    "import heedmap": ["-c", "import heedmap"],
    "heedmap --help": ["-m", "heedmap", "--help"],
    "heedmap train --help": ["-m", "heedmap", "train", "--help"],
    "error of usage": ["-m", "heedmap", "train", "--epocs", "3"],
}


def main(rounds: int = 9) -> dict[str, Any]:
    """Measure, keep and return the figures."""
    contenders = {
        name: lambda words=words: subprocess.run([sys.executable, *words], capture_output=True, check=False)
        for name, words in PREDICTIONS.items()
    }
    record = {"seconds": {name: spread(values) for name, values in alternate(contenders, rounds).items()}}
    keep("startup", record)
    return record
