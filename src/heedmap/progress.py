"""Who is told what happens while something long is under way."""

from heedmap.types import EpochReport, StepReport


class Progress:
    """What a caller may want to see while training goes; this one ignores everything."""

    def message(self, text: str) -> None:
        """A sentence about what was found or done."""

    def step(self, report: StepReport) -> None:
        """A step of training is over."""

    def epoch(self, report: EpochReport) -> None:
        """An epoch of training is over."""
