from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from tnet.cli.main import app

tifffile = pytest.importorskip("tifffile")


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["pyramid", *map(str, arguments)])
    assert "Traceback" not in result.output
    return result.exit_code, result.output


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    y, x = np.mgrid[:300, :520]
    Image.fromarray(np.stack([y % 256, x % 256, (x + y) % 256], 2).astype(np.uint8)).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


def test_a_picture_becomes_a_pyramid(picture: Path, tmp_path: Path) -> None:
    code, output = run(picture, tmp_path / "made.tif", "--no-progress")
    assert code == 0
    size = (tmp_path / "made.tif").stat().st_size
    assert output == f"{tmp_path / 'made.tif'}: {size / 1e6:.1f} MB, 3 levels (300 x 520, 150 x 260, 75 x 130)\n"
    with tifffile.TiffFile(tmp_path / "made.tif") as file:
        np.testing.assert_array_equal(file.pages[0].asarray(), np.asarray(Image.open(picture)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made.tif", "picture.png"]


def test_a_pyramid_of_a_pyramid_is_the_same(picture: Path, tmp_path: Path) -> None:
    assert run(picture, tmp_path / "a.tif", "--no-progress")[0] == 0
    assert run(tmp_path / "a.tif", tmp_path / "b.tif", "--no-progress", "--compression", "zstd")[0] == 0
    with tifffile.TiffFile(tmp_path / "a.tif") as a, tifffile.TiffFile(tmp_path / "b.tif") as b:
        assert len(a.pages) == len(b.pages) == 3
        for first, second in zip(a.pages, b.pages, strict=True):
            np.testing.assert_array_equal(first.asarray(), second.asarray())


def test_options(picture: Path, tmp_path: Path) -> None:
    code, output = run(
        picture, tmp_path / "made.tiff", "--compression", "jpeg", "--quality", 80, "--smallest-px", 100, "--progress"
    )
    assert code == 0 and "4 levels" in output
    with tifffile.TiffFile(tmp_path / "made.tiff") as file:
        assert file.pages[0].compression == 7


def test_a_file_is_replaced_only_when_asked(picture: Path, tmp_path: Path) -> None:
    (tmp_path / "made.tif").write_bytes(b"older")
    code, output = run(picture, tmp_path / "made.tif", "--no-progress")
    assert code == 1 and output.startswith("error: ") and "--overwrite" in output
    assert (tmp_path / "made.tif").read_bytes() == b"older"
    assert run(picture, tmp_path / "made.tif", "--no-progress", "--overwrite")[0] == 0


@pytest.mark.parametrize(
    ("content", "options"), [(b"no picture", []), (None, []), (b"", []), ("own", ["--max-pixels", 9])]
)
def test_what_cannot_be_read_leaves_nothing(
    picture: Path, tmp_path: Path, content: bytes | str | None, options: list[object]
) -> None:
    source = picture if content == "own" else tmp_path / "odd.png"
    if isinstance(content, bytes):
        source.write_bytes(content)
    before = sorted(tmp_path.iterdir())
    code, output = run(source, tmp_path / "made.tif", "--no-progress", *options)
    assert code == 1
    assert output.startswith("error: ") and source.name in output
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("arguments", [[], ["a.png"], ["a.png", "b.tif", "--compression", "lzw"],
                                       ["a.png", "b.tif", "--quality", 101]])  # fmt: skip
def test_wrong_usage(arguments: list[object]) -> None:
    assert run(*arguments)[0] == 2
