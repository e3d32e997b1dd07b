"""What MkDocs does besides: pages from other folders, the commands' help, tidy roles, nothing from elsewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
ELSEWHERE = {"log.md": "experiments/LOG.md", "changelog.md": "CHANGELOG.md", "experiments.md": "experiments/README.md"}
ELSEWHERE |= {
    f"results/tables/{path.name}": path.relative_to(ROOT).as_posix()
    for path in sorted((ROOT / "benchmarks" / "results").glob("*.md"))
}
HELP = "<!-- help of the commands -->"
ROLE = re.compile(r":(?:class|func|meth|mod|attr|data|exc):(?=<code>)")
ASSET = re.compile(r"""<(?:script|img|iframe|source|video|audio)\b[^>]*\bsrc=["']?((?:https?:)?//[^"'\s>]+)""")
SHEET = re.compile(
    r"""<link\b(?=[^>]*\brel=["']?(?:stylesheet|preload|preconnect|icon))[^>]*\bhref=["']?((?:https?:)?//[^"'\s>]+)"""
)


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that live beside what they describe, outside docs/."""
    for uri, source in ELSEWHERE.items():
        files.append(File.generated(config, uri, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Let links lead to the pages from outside docs/, and put in the commands' help."""
    uri = page.file.src_uri
    markdown = re.sub(r"(\]\()([^)#\s:]+\.md)(?=[)#])", lambda link: link[1] + _inside(link[2], uri), markdown)
    return markdown.replace(HELP, _help()) if HELP in markdown else markdown


def _inside(target: str, uri: str) -> str:
    """The address, relative to page ``uri``, of the file that ``target`` names relative to the page's source."""
    source = (ROOT / ELSEWHERE[uri] if uri in ELSEWHERE else ROOT / "docs" / uri).parent
    path = Path(os.path.normpath(source / target)).relative_to(ROOT).as_posix()
    found = {place: page for page, place in ELSEWHERE.items()}.get(path) or path.removeprefix("docs/")
    return os.path.relpath(found, Path(uri).parent)


def _help() -> str:
    from heedmap.cli import commands

    return "\n\n".join(f"## heedmap {name}\n\n```\n{_printed(name)}\n```" for name in commands.COMMANDS)


def _printed(command: str) -> str:
    words = [sys.executable, "-m", "heedmap", command, "--help"]
    env = {**os.environ, "COLUMNS": "82", "NO_COLOR": "1", "TERM": "dumb", "PYTHONPATH": str(ROOT / "src")}
    printed = subprocess.run(words, env=env, capture_output=True, text=True, check=True).stdout
    return "\n".join(line.rstrip() for line in printed.strip().splitlines())


def on_page_content(html: str, **_: Any) -> str:
    """Take Sphinx's roles off the names in docstrings."""
    return ROLE.sub("", html)


def on_post_build(config: Any) -> None:
    """Refuse a site that would load a script, a style or an image from another host."""
    for path in sorted(Path(config.site_dir).rglob("*.html")):
        html = path.read_text(encoding="utf-8")
        if foreign := [*ASSET.findall(html), *SHEET.findall(html)]:
            raise PluginError(f"{path} loads {foreign[0]}; the site has to work offline.")
