"""Hooks of the docs site: pages that live in the root of the repository, and the list of public names.

README, CHANGELOG and CONTRIBUTING are read where GitHub shows them; their links are made relative to ``docs/``.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

import tnet

ROOT = Path(__file__).resolve().parents[1]
PAGES = {"index.md": "README.md", "changelog.md": "CHANGELOG.md", "contributing.md": "CONTRIBUTING.md"}


def on_files(files: Files, config: Any) -> Files:
    """Add the pages from the root."""
    names = {source: page for page, source in PAGES.items()}
    for page, source in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8").replace("](docs/", "](")
        text = re.sub(r"\]\((\w+\.md)", lambda match: f"]({names.get(match[1], match[1])}", text)
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Document, on the API page, the public names that it does not mention itself."""
    if page.file.src_uri != "api.md":
        return markdown
    mentioned = set(re.findall(r"^::: tnet\.(\w+)$", markdown, re.MULTILINE))
    rest = [name for name in tnet.__all__ if name not in mentioned and not name.startswith("_")]
    return markdown + "".join(f"\n::: tnet.{name}\n" for name in sorted(rest))
