from __future__ import annotations

from typer.testing import CliRunner

from tnet.cli.main import app
from tnet.models.registry import list_models


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["models", *arguments])
    return result.exit_code, result.output


def test_every_registered_model_is_listed_with_what_it_is() -> None:
    code, output = run()
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in output.splitlines()]
    assert code == 0
    assert lines[0] == ["name", "backbone", "base px", "levels", "grid", "looks", "classes"]
    assert [line[0] for line in lines[2:]] == list_models()
    by_name = {line[0]: line[1:] for line in lines[2:]}
    assert by_name["tnet_efficientnet_b0.fmow_896"] == ["tf_efficientnet_b0", "224", "3", "3 x 3 of 0.5", "2x1", "62"]


def test_a_pattern_chooses() -> None:
    code, output = run("*fmow*")
    assert code == 0
    assert [line.split("|")[1].strip() for line in output.splitlines()[2:]] == list_models("*fmow*")


def test_backbones_are_listed_by_name_alone() -> None:
    assert run("--backbones", "*bagnet*") == (0, "bagnet77\n")
    code, output = run("--backbones", "tf_efficientnet_b?")
    assert code == 0
    assert output.split() == [f"tf_efficientnet_b{size}" for size in range(9)]


def test_no_match_is_an_error_that_says_what_to_do() -> None:
    code, output = run("no-such-*")
    assert code == 1 and output.startswith("error: ") and "'no-such-*'" in output
    code, output = run("--backbones", "resnet9999")
    assert code == 1 and "'resnet9999'" in output and "'*resnet*'" in output
