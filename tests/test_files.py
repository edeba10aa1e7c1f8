"""Atomic writing of files and folders."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tnet.errors import OutputError
from tnet.files import atomic_folder, atomic_path, make_folder, name_after, write_text


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_atomic_path_appears_when_complete(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "er" / "a.csv"
    with atomic_path(target) as temporary:
        assert temporary.parent == target.parent and temporary.suffix == ".csv"
        temporary.write_text("1")
        assert not target.exists()
    assert target.read_text() == "1" and names(target.parent) == ["a.csv"]


def test_error_keeps_the_old_file_and_leaves_no_temporary(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert target.read_text() == "old" and names(tmp_path) == ["a.txt"]


def test_write_text_replaces_the_file(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "é" * 1000)
    write_text(tmp_path / "a.txt", "ü\n")
    assert (tmp_path / "a.txt").read_bytes() == "ü\n".encode()


@pytest.mark.parametrize("write", [lambda path: write_text(path, "x"), lambda path: atomic_folder(path).__enter__()])
def test_file_where_a_folder_is_needed(tmp_path: Path, write: object) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="file cannot be written"):
        write(tmp_path / "file" / "inside")  # type: ignore[operator]
    assert (tmp_path / "file").read_text() == "x"


def test_folder_in_place_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt" / "b").mkdir(parents=True)
    with pytest.raises(OutputError, match=r"a\.txt cannot be written"):
        write_text(tmp_path / "a.txt", "x")
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root has all permissions")
def test_no_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="cannot be written"):
        make_folder(tmp_path / "new")
    with pytest.raises(OutputError, match="cannot be written"):
        write_text(tmp_path / "a.txt", "x")


def test_atomic_folder_replaces_the_old_one_when_complete(tmp_path: Path) -> None:
    target = tmp_path / "model"
    for content in ("one", "two"):
        with atomic_folder(target) as temporary:
            (temporary / content).write_text(content)
    assert names(target) == ["two"] and names(tmp_path) == ["model"]
    assert target.stat().st_mode & 0o777 == 0o755  # not the private mode of temporary folders


def test_error_keeps_the_old_folder_and_leaves_no_temporary(tmp_path: Path) -> None:
    target = tmp_path / "model"
    with atomic_folder(target) as temporary:
        (temporary / "good").write_text("x")
    with pytest.raises(ZeroDivisionError), atomic_folder(target) as temporary:
        (temporary / "half").write_text("x")
        raise ZeroDivisionError
    assert names(target) == ["good"] and names(tmp_path) == ["model"]


def test_failed_replacement_restores_the_old_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "model"
    with atomic_folder(target) as temporary:
        (temporary / "good").write_text("x")
    replace = os.replace

    def fail_for_the_new_one(source: Path, destination: Path) -> None:
        if Path(destination) == target and not str(source).endswith(".old"):
            raise OSError(28, "No space left on device")
        replace(source, destination)

    monkeypatch.setattr(os, "replace", fail_for_the_new_one)
    with pytest.raises(OutputError, match="No space left on device"), atomic_folder(target) as temporary:
        (temporary / "new").write_text("x")
    assert names(target) == ["good"] and names(tmp_path) == ["model"]


def test_make_folder(tmp_path: Path) -> None:
    assert make_folder(tmp_path / "a" / "b").is_dir()
    assert make_folder(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert names(tmp_path / "a" / "b") == []


@pytest.mark.parametrize("stem", ["x" * 251, "ä" * 125, "漢" * 84, "x" * 200])
def test_a_long_name_is_cut_and_stays_its_own(tmp_path: Path, stem: str) -> None:
    taken: set[str] = set()
    names = [name_after(f"{stem}.png", ".geojson", taken) for _ in range(2)]
    names.append(name_after(f"{stem[:-1]}y.png", ".geojson", taken))
    assert len(set(names)) == 3 and all(name.startswith(stem[:30]) for name in names)
    for name in names:
        write_text(tmp_path / name, "text")  # beside a temporary file with a longer name
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
