"""SIGTERM in the moment in which a verb puts its first file in place: status 143, a sentence, nothing half-written."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.helpers import pictures
from torchvision.transforms.functional import to_pil_image

# The first renaming of a file is preceded by the signal.
PROGRAM = """
import os, signal
from tnet.cli.main import main

rename = os.replace

def stopped(*places, **options):
    os.kill(os.getpid(), signal.SIGTERM)
    rename(*places, **options)

os.replace = stopped
main()
"""
SUITE = """
title: one model
split: val
data: {kind: folder, root: ., train: photos, val: photos}
rows: [{name: one, model: model}]
"""


@pytest.fixture
def photos(tmp_path: Path) -> None:
    for number, name in enumerate(("ant", "bee", "cat", "dog", "elk")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for index, image in enumerate(pictures((96, 96), (96, 128), seed=number)):
            to_pil_image(image).save(tmp_path / "photos" / name / f"{index}.png")
    (tmp_path / "suite.yaml").write_text(SUITE)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("model", "photos")
@pytest.mark.parametrize(
    "command",
    [
        "evaluate model photos --out out",
        "calibrate model photos --out out",
        "explain model photos --out out",
        "predict model photos --out out.csv",
        "suggest photos --backbone test_resnet --out out.yaml",
        "pyramid photos/ant/0.png out.tif",
        "compare suite.yaml --out out",
    ],
)
def test_a_verb_that_is_stopped_leaves_no_file(command: str, tmp_path: Path) -> None:
    def files() -> set[Path]:
        return {path for path in tmp_path.rglob("*") if path.is_file()}

    before = files()
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, *command.split()], cwd=tmp_path, capture_output=True, text=True, timeout=250
    )
    assert result.returncode == 128 + signal.SIGTERM, result.stderr
    assert "stopped by SIGTERM" in result.stderr and "Traceback" not in result.stderr
    assert files() == before
