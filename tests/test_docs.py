"""The documentation runs: Python blocks print what the page says, shell lines name commands and options that exist."""

import contextlib
import dataclasses
import io
import itertools
import re
from pathlib import Path

import pytest

from heedmap.options import TrainOptions

ROOT = Path(__file__).parents[1]
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md"))
COMMANDS = {"demo", "train", "visualize", "evaluate", "audit", "list"}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def fences(page: str) -> list[tuple[str, str, int]]:
    """Return (language, content, line) of each fenced block of a page."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return [(found[1], found[2], text.count("\n", 0, found.start()) + 2) for found in FENCE.finditer(text)]


def python_blocks() -> list:
    """Return each Python block of each page with what the block after it says is printed."""
    blocks = []
    for page in PAGES:
        found = [*fences(page), ("", "", 0)]
        for (language, code, line), (after, printed, _) in itertools.pairwise(found):
            if language == "python":
                expected = printed if after == "text" else ""
                blocks.append(pytest.param(code, expected, id=f"{page}:{line}"))
    return blocks


def test_there_are_pages_and_blocks_to_run() -> None:
    assert "docs/attention-maps.md" in PAGES
    assert len(python_blocks()) >= 4


@pytest.mark.parametrize(("code", "expected"), python_blocks())
def test_a_python_block_prints_what_the_page_says(code: str, expected: str) -> None:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "block", "exec"), {"__name__": "block"})
    assert printed.getvalue().splitlines() == [line.rstrip() for line in expected.splitlines()]


@pytest.mark.parametrize("page", PAGES)
def test_shell_lines_name_commands_and_train_options_that_exist(page: str) -> None:
    known = {field.name.replace("_", "-") for field in dataclasses.fields(TrainOptions)} | {"config", "resume"}
    lines = [line for _, content, _ in fences(page) for line in content.splitlines() if line.startswith("heedmap ")]
    for line in lines:
        command = line.split()[1]
        assert command in COMMANDS, line
        if command == "train":
            named = {option.removeprefix("no-") for option in re.findall(r"--([a-z][a-z-]*)", line)}
            assert named <= known, line
