from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.fakes import make_fake
from typer.testing import CliRunner

from tnet.cli.main import app
from tnet.data.cub import CUB


def check(*arguments: object) -> tuple[int, list[str]]:
    result = CliRunner().invoke(app, ["data", "check", *map(str, arguments)])
    return result.exit_code, result.output.splitlines()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_fake("cub", tmp_path / "cub", classes=3, side_px=16)


def test_what_differs_is_a_failure(root: Path, tmp_path: Path) -> None:
    (root / "images/001.Made_bird_1/Made_bird_1_0001_0.jpg").unlink()
    code, lines = check("cub", root, "--json", tmp_path / "out" / "cub.json")
    assert code == 1
    assert lines[0] == f"CUB-200-2011 in {root}"
    assert lines[2].split() == ["train", "6", "5,994", "3"] and lines[3].split() == ["test", "3", "5,794", "3"]
    assert "- train: 1 images are missing or empty: 'images/001.Made_bird_1/Made_bird_1_0001_0.jpg'" in lines
    assert lines[-1] == "5 findings" == f"{sum(line.startswith('- ') for line in lines)} findings"
    written = json.loads((tmp_path / "out" / "cub.json").read_text())
    assert written["ok"] is False and written["name"] == "cub" and len(written["findings"]) == 5
    assert written["splits"][0] == {"name": "train", "images": 6, "official": 5994, "classes": 3, "missing": 1}


def test_what_is_complete_is_not(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CUB, "images", {"train": 6, "test": 3})
    monkeypatch.setattr(CUB, "num_classes", 3)
    code, lines = check("cub", root, "--json", tmp_path / "cub.json")
    assert (code, lines[-1]) == (0, "complete")
    assert json.loads((tmp_path / "cub.json").read_text())["ok"] is True


@pytest.mark.parametrize("name", ["imagenet", "fmow", "cub", "nabirds"])
def test_an_empty_folder(name: str, tmp_path: Path) -> None:
    code, lines = check(name, tmp_path)
    assert code == 1 and lines[-1].endswith("findings") and "Traceback" not in "\n".join(lines)
    assert lines[2].split()[:2] == ["train", "-"]


def test_wrong_names(tmp_path: Path) -> None:
    code, lines = check("cub", tmp_path / "nowhere")
    assert code == 1 and len(lines) == 1 and f"folder {tmp_path / 'nowhere'} " in lines[0]
    code, lines = check("mnist", tmp_path)
    assert code == 1 and "'mnist'" in lines[0]


def test_help() -> None:
    for arguments in (["data", "--help"], ["data", "check", "--help"]):
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0 and "check" in result.output
    assert CliRunner().invoke(app, ["data"]).exit_code == 2
