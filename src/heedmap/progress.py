"""The callbacks of something long: messages, steps and epochs."""

from heedmap.types import EpochReport, StepReport


class Progress:
    """Receives what happens during training; this base class ignores it."""

    def message(self, text: str) -> None:
        """Receive a sentence about what was found or done."""

    def step(self, report: StepReport) -> None:
        """Receive the report of a training step."""

    def epoch(self, report: EpochReport) -> None:
        """Receive the report of an epoch."""
