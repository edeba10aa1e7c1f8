"""The tutorials run as they are printed: each page's blocks, in order, in an empty folder."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tnet.cli.main import app

TUTORIALS = sorted((Path(__file__).resolve().parents[2] / "docs" / "tutorials").glob("*.md"))
BLOCK = re.compile(r"^```(python|bash)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def run_bash(block: str) -> None:
    """Run each line; the program's own commands in this process, which spares the imports."""
    for line in block.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["tnet"]:
            result = CliRunner().invoke(app, words[1:])
            assert result.exit_code == 0, f"{line}\n{result.output}"
        elif words:
            subprocess.run(["bash", "-c", line], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("page", TUTORIALS, ids=[page.stem for page in TUTORIALS])
def test_tutorial_runs(page: Path, in_tmp_path: Path) -> None:
    if page.stem == "slides_and_rasters":
        for module in ("rasterio", "zarr", "tifffile"):
            pytest.importorskip(module)
    names: dict[str, Any] = {"__name__": "tutorial"}
    for language, block in BLOCK.findall(page.read_text(encoding="utf-8")):
        if language == "bash":
            run_bash(block)
        else:
            exec(compile(block, page.name, "exec"), names)
