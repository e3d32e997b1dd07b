"""The map methods that the page offers."""

from __future__ import annotations

LEARNED = "learned"


def method_table() -> dict[str, str]:
    """Key -> one sentence for the page; learned attention comes first."""
    return {LEARNED: "learned attention: the weights that the network used"}
