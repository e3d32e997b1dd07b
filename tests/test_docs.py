"""The documentation runs: Python blocks print what the page says, command lines parse, paths, pages and names exist."""

import contextlib
import importlib.util
import io
import itertools
import re
import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

import heedmap
from conftest import cue_image, write_cue_part
from heedmap.cli.main import COMMANDS, main
from heedmap.config import TrainOptions
from heedmap.models.architecture import Architecture
from heedmap.runs import Run

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
SITE = sorted(path.relative_to(ROOT).as_posix() for path in DOCS.rglob("*.md"))
PAGES = ["README.md", *SITE]
LINKED = [*PAGES, "CONTRIBUTING.md", "CHANGELOG.md", "experiments/README.md", "experiments/LOG.md"]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def fences(page: str) -> list[tuple[str, str, int]]:
    """Return (language, content, line) of each fenced block of a page."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return [(block[1], block[2], text.count("\n", 0, block.start()) + 2) for block in FENCE.finditer(text)]


def python_blocks() -> list:
    """Return each Python block of each page with what the block after it says is printed."""
    blocks = []
    for page in PAGES:
        of_page = [*fences(page), ("", "", 0)]
        for (language, code, line), (after, printed, _) in itertools.pairwise(of_page):
            if language == "python":
                expected = printed if after == "text" else ""
                blocks.append(pytest.param(code, expected, id=f"{page}:{line}"))
    return blocks


def command_lines() -> list:
    """Return every heedmap command of every page: the lines of shell blocks, and what stands in backquotes."""
    lines = []
    for page in PAGES:
        shell = [line for language, content, _ in fences(page) if not language for line in content.splitlines()]
        quoted = re.findall(r"`(heedmap [a-z]+ [^`\n]+)`", text_without_code(page))
        of_page = [line for line in shell if re.match(r"(heedmap|torchrun .*-m heedmap) ", line)] + quoted
        # A word in capitals before --help stands for any command.
        lines += [pytest.param(line, id=f"{page}: {line[:60]}") for line in of_page if "COMMAND" not in line]
    return lines


def text_without_code(page: str) -> str:
    return FENCE.sub("", (ROOT / page).read_text(encoding="utf-8"))


def settings() -> dict:
    """What mkdocs.yml says; its tags for Python objects are left out."""
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    return yaml.safe_load(re.sub(r"!!python/\S+", "", text))


def entries(nav: list) -> list[tuple[str, str]]:
    """Return (title, page) of the navigation, in its order."""
    found = []
    for item in nav:
        ((title, content),) = item.items()
        found += [(title, content)] if isinstance(content, str) else entries(content)
    return found


def test_there_are_pages_blocks_and_lines_to_try() -> None:
    assert {"README.md", "docs/evaluating.md", "docs/concepts/attention-maps.md", "docs/get-started.md"} <= set(PAGES)
    assert len(python_blocks()) >= 20
    assert len(command_lines()) >= 60


@pytest.mark.parametrize(("code", "expected"), python_blocks())
def test_a_python_block_prints_what_the_page_says(code, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if "images" in code or "cat.jpg" in code:  # a block that trains finds a folder of images and two more to draw
        for part, seed in (("train", 0), ("test", 1000)):
            write_cue_part(tmp_path / "images" / part, 12, first_seed=seed)
        for name in ("cat", "dog"):
            cue_image("red", 7)[0].save(tmp_path / f"{name}.jpg")
    printed = io.StringIO()
    scope = {"__name__": "block"}
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "block", "exec"), scope)
    assert printed.getvalue().splitlines() == [line.rstrip() for line in expected.splitlines()]
    assert "page" not in scope or scope["page"].is_file()


@pytest.mark.parametrize("line", command_lines())
def test_a_command_line_names_a_command_options_and_values_that_exist(line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("data: images\nattention: dot\n")  # for the line with --config
    (experiment,) = [code for language, code, _ in fences("docs/how-to/compare.md") if language == "yaml"]
    (tmp_path / "scores.yaml").write_text(experiment)
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    begun = Run.create("runs/images-compact-parametrised-1")  # for the line with --resume
    parts = Architecture("compact", "parametrised", None, "concat", None, 32, ("cat", "dog"))
    begun.write_config(TrainOptions(data="images"), parts)
    made = []
    for command in COMMANDS.values():
        monkeypatch.setattr(command, "work", lambda command: made.append(command))
    words = shlex.split(line, comments=True)
    main(words[words.index("heedmap") + 1 :])  # exits with 2 where the words do not fit
    assert len(made) == 1


def test_the_options_of_a_configuration_file_exist():
    (example,) = [code for language, code, _ in fences("docs/reference/configuration.md") if language == "yaml"]
    assert TrainOptions(**yaml.safe_load(example)).attention == "dot"


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 140


def test_the_readme_lists_every_command_once_and_no_other():
    table = re.findall(r"^\| `(\w+)` \| [^|]+ \| `heedmap (\w+)", text_without_code("README.md"), re.MULTILINE)
    assert sorted(table) == sorted((name, name) for name in COMMANDS)


def test_contributing_names_every_room_once_and_no_other():
    tree = next(content for _, content, _ in fences("CONTRIBUTING.md") if content.startswith("src/heedmap/"))
    named = re.findall(r"^    (\w+)(?:\.py|/) ", tree, re.MULTILINE)
    home = ROOT / "src" / "heedmap"
    rooms = [path.stem for path in home.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()]
    assert sorted(named) == sorted(room for room in rooms if not room.startswith("_"))


def test_the_navigation_has_every_page_once():
    pages = [page for _, page in entries(settings()["nav"])]
    from_elsewhere = {"log.md", "changelog.md", "experiments.md"}  # see docs/hooks.py
    assert len(pages) == len(set(pages))
    assert set(pages) - from_elsewhere == {page.removeprefix("docs/") for page in SITE}


@pytest.mark.parametrize(
    "need",
    [
        "Fine-tune a timm ConvNeXt",
        "Attention in my own module, in my own loop",
        "The map of one image as an array",
        "Change the data augmentation",
        "Use a GPU",
        "Log to W&B, TensorBoard, MLflow or CSV",
        "Train with several processes",
        "Resume an interrupted run",
    ],
)
def test_the_navigation_leads_to_what_people_look_for(need):
    (page,) = [page for title, page in entries(settings()["nav"]) if title == need]
    assert (DOCS / page).read_text(encoding="utf-8").startswith(f"# {need}\n")


def test_the_reference_has_every_public_name():
    text = "".join(path.read_text(encoding="utf-8") for path in (DOCS / "reference" / "api").glob("*.md"))
    named = re.findall(r"^::: heedmap\.(\w+)$", text, re.MULTILINE)
    rooms = {"attention", "heads", "models", "backbones", "data", "training", "attribution", "metrics", "inference"}
    rooms |= {"exporters", "visualization", "workflows", "apps", "types", "config", "errors", "progress", "runs", "hub"}
    assert rooms <= set(named)  # each with its submodules
    assert [name for name in heedmap.__all__ if name not in named and f"`heedmap.{name}`" not in text] == []


@pytest.mark.parametrize("page", LINKED)
def test_links_to_files_and_headings_lead_somewhere(page):
    for target in re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", text_without_code(page)):
        path, _, heading = target.partition("#")
        if target.startswith("http"):
            continue
        linked = (ROOT / page).parent / path if path else ROOT / page
        assert linked.is_file(), target
        if not heading or (DOCS / "reference") in linked.resolve().parents:  # `make docs` checks what it generates
            continue
        headings = re.findall(r"^#+ (.*)$", linked.read_text(encoding="utf-8"), re.MULTILINE)
        anchors = {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings}
        assert heading in anchors, target


def test_a_site_that_would_load_something_from_elsewhere_is_refused(tmp_path):
    exceptions = pytest.importorskip("mkdocs.exceptions")
    spec = importlib.util.spec_from_file_location("hooks", DOCS / "hooks.py")
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    page = tmp_path / "index.html"
    page.write_text('<a href="https://arxiv.org">a link</a><link rel="stylesheet" href="own.css"><script src="own.js">')
    hooks.on_post_build(SimpleNamespace(site_dir=tmp_path))
    for asset in (
        '<script async src="https://cdn.example/x.js"></script>',
        '<link href="//fonts.example/x.css" rel="stylesheet">',
        "<img alt='' src=https://img.example/x.png>",
    ):
        page.write_text(asset)
        with pytest.raises(exceptions.PluginError, match="example/x"):
            hooks.on_post_build(SimpleNamespace(site_dir=tmp_path))


def test_the_log_of_experiments_lists_every_entry():
    text = (ROOT / "experiments" / "LOG.md").read_text(encoding="utf-8")
    dated = re.findall(r"^## \d{4}-\d\d-\d\d (.*)$", text, re.MULTILINE)
    assert re.findall(r"^\| [\d-]{10} \| \[(.*?)\]\(#", text, re.MULTILINE) == dated


def test_the_page_on_the_paper_names_files_that_exist():
    text = text_without_code("docs/concepts/learn-to-pay-attention.md")
    paths = re.findall(r"`((?:\w+/)*\w+\.py)`", text)
    assert len(set(paths)) >= 8
    for path in paths:
        assert (ROOT / "src" / "heedmap" / path).is_file() or (ROOT / path).is_file(), path
