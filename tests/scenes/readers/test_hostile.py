"""Damaged and malicious files of every format: an error that names the file, soon, and within bounds of memory."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tests.scenes.readers import make

from tnet.errors import ImageError
from tnet.scenes.readers import READERS, open_reader

NAMES = list(READERS)
SIZE_HW = (243, 317)
SOON_S = 10


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    for form, write in make.WRITERS.items():
        write(folder / form, make.ramps(*SIZE_HW))
    make.slide(folder / "slide", make.ramps(*SIZE_HW))
    return folder


def _read_all(path: Path, name: str | None = None) -> None:
    """Read what can be read; only an ImageError that names the file may come of it."""
    started = time.monotonic()
    reader = None
    refusal = f"{path} was read"
    try:
        reader = open_reader(path, name=name)
        for index, level in enumerate(reader.info.levels):
            height, width = level.size_hw
            reader.read(index, (0, 0, min(height, 512), min(width, 512)))
            reader.read(index, (height - 1, width - 1, height, width))
    except ImageError as error:
        refusal = str(error)
    finally:
        if reader is not None:
            reader.close()
    assert str(path) in refusal and "\n" not in refusal
    assert time.monotonic() - started < SOON_S


def _copied(folder: Path, form: str, to: Path, random: np.random.Generator) -> Path:
    """Copy a file or folder; of a folder, the file to damage is one at random."""
    if not (folder / form).is_dir():
        shutil.copy(folder / form, to)
        return to
    shutil.copytree(folder / form, to)
    files = sorted(file for file in to.rglob("*") if file.is_file())
    return files[int(random.integers(len(files)))]


@pytest.mark.parametrize("form", [*make.WRITERS, "slide"])
def test_damage_at_random(form: str, folder: Path, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for number in range(6):
        path = tmp_path / f"damaged-{number}"
        file = _copied(folder, form, path, random)
        if number % 2:
            make.flipped(file, number, count=12)
        else:
            make.truncated(file, float(random.random()))
        for name in (None, *NAMES[:4]) if path.is_file() else (None,):
            _read_all(path, name)


@pytest.mark.parametrize("form", [form for form in [*make.WRITERS, "slide"] if "zarr" not in form])
def test_half_a_file_is_never_taken_for_a_whole(form: str, folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "half"
    shutil.copy(folder / form, path)
    make.truncated(path, 0.5)
    with pytest.raises(ImageError, match="half"):
        reader = open_reader(path)
        reader.read(0, (0, 0, *reader.info.levels[0].size_hw))


HOSTILE = {maker.__name__: maker for maker in (make.giant_png, make.giant_jpeg, make.giant_tiff, make.cyclic_tiff)}


@pytest.mark.parametrize("write", HOSTILE)
@pytest.mark.parametrize("name", [None, *NAMES[:4]])
def test_hostile_files_in_every_reader(write: str, name: str | None, tmp_path: Path) -> None:
    path = HOSTILE[write](tmp_path / "hostile")
    started = time.monotonic()
    with pytest.raises(ImageError, match="hostile"):
        reader = open_reader(path, name=name)
        try:
            height, width = reader.info.levels[0].size_hw
            reader.read(0, (height // 2, width // 2, min(height, height // 2 + 64), min(width, width // 2 + 64)))
        finally:
            reader.close()
    assert time.monotonic() - started < SOON_S


@pytest.mark.parametrize("name", NAMES)
def test_empty_and_missing_files(name: str, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    for path in ("empty", "missing", "missing/deeper"):
        with pytest.raises(ImageError, match=path):
            open_reader(tmp_path / path, name=name)


@pytest.mark.slow
def test_hostile_files_fit_into_little_memory(tmp_path: Path) -> None:
    """What libraries take for themselves set aside; libtiff reads as much of a bomb as a tile holds, and no more."""
    files = [write(tmp_path / write.__name__) for write in (make.giant_png, make.giant_jpeg, make.bomb_tiff)]
    files += [make.giant_tiff(tmp_path / "tiles"), make.giant_tiff(tmp_path / "strip", tile=None)]
    files.append(make.raw_tiff(tmp_path / "one_tile", [make.tiff_ifd(16_384, tile=16_384, t259=(3, 1, 8))]))
    program = (
        "import sys\n"
        "from tnet.errors import ImageError\n"
        "from tnet.evaluation.memory import peak_bytes\n"
        "from tnet.scenes.readers import READERS, open_reader\n"
        "from tnet.scenes.readers.doctor import reader_status\n"
        "reader_status()\n"
        "before = peak_bytes()\n"
        "for path in sys.argv[1:]:\n"
        "    for name in (None, *list(READERS)[:4]):\n"
        "        try:\n"
        "            reader = open_reader(path, name=name)\n"
        "            reader.read(0, (0, 0, 64, 64))\n"
        "        except ImageError:\n"
        "            continue\n"
        "        if 'bomb' not in path:\n"
        "            raise SystemExit(f'{path} was read by {name}')\n"
        "print((peak_bytes() - before) // 2**20)\n"
    )
    command = [sys.executable, "-c", program, *map(str, files)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert int(ran.stdout) < 300  # MiB
