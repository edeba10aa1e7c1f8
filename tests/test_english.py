"""Comments, docstrings, messages and documents use the words of the field."""

from __future__ import annotations

import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

import tnet

SRC = Path(tnet.__file__).parent

PACKAGES = sorted({path.relative_to(SRC).parts[0].removesuffix(".py") for path in SRC.rglob("*.py")})

ROOT = Path(__file__).parents[1]
DOCUMENTS = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"]
DOCUMENTS += sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("docs/**/*.md"))

FORBIDDEN = {
    r"(?m)(^|[#.:\"] ?)\s*Of\b": "a proper phrase instead of a leading 'Of ...'",
    r"\b[Aa]new\b": "again, or new",
    r"\bhand(s|ed|ing)? (out|over)\b": "return, yield or pass",
    r"\bmade (pictures?|images?|scenes?|digits|data|task)\b": "synthetic",
    r"\b([Tt]old|[Tt]ells)\b": "said, shown, given",
    r"(?<![Tt]here )\b(is|are) no (?!longer\b)": "is not a, there is no",
    r"\b[Aa] word\b": "briefly",
    r"\bby heart\b": "memorized",
    r"\b(hold|holds|held|holding) (\S+ )?against\b": "compare",
    r"\bwhat comes of it\b": "result",
    r"\b[Ww]herever\b": "where",
    r"\b[Pp]ictures?\b": "image",
    r"\b[Dd]ata sets?\b": "dataset",
    r"\b[Oo]ptimis(er|e)\b": "optimizer",
}


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """Line and text of every comment and string of a Python file."""
    kinds = {tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", -1)}
    for token in tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline):
        if token.type in kinds:
            yield token.start[0], token.string


def faults(text: str) -> Iterator[str]:
    for pattern, better in FORBIDDEN.items():
        for match in re.finditer(pattern, text):
            yield f"{match[0].strip()!r} ({better})"


@pytest.mark.parametrize("package", PACKAGES)
def test_code_uses_plain_english(package: str) -> None:
    root = SRC / package
    paths = sorted(root.rglob("*.py")) if root.is_dir() else [root.with_suffix(".py")]
    found = [
        f"{path.relative_to(SRC)}:{line}: {fault}"
        for path in paths
        for line, text in texts(path)
        for fault in faults(text)
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_documents_use_plain_english(document: str) -> None:
    lines = (ROOT / document).read_text(encoding="utf-8").splitlines()
    found = [f"{document}:{number}: {fault}" for number, line in enumerate(lines, 1) for fault in faults(line)]
    assert not found, "\n".join(found)
