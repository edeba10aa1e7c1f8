"""Atomic writing of files and folders."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tnet.errors import OutputError
from tnet.files import (
    CLAIM_NAME,
    atomic_folder,
    atomic_path,
    check_outputs,
    claimed,
    make_folder,
    name_after,
    write_text,
)


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


def test_atomic_folder_replaces_files_of_the_same_names_when_complete(tmp_path: Path) -> None:
    target = tmp_path / "model"
    for content in ("one", "two"):
        with atomic_folder(target) as temporary:
            (temporary / content).write_text(content)
            (temporary / "two").write_text(f"of {content}")
        assert (target / "two").read_text() == f"of {content}"
    assert names(target) == ["one", "two"] and names(tmp_path) == ["model"]


def test_error_keeps_the_old_folder_and_leaves_no_temporary(tmp_path: Path) -> None:
    target = tmp_path / "model"
    with atomic_folder(target) as temporary:
        (temporary / "good").write_text("x")
    with pytest.raises(ZeroDivisionError), atomic_folder(target) as temporary:
        (temporary / "half").write_text("x")
        raise ZeroDivisionError
    assert names(target) == ["good"] and names(tmp_path) == ["model"]


def test_failed_replacement_keeps_the_old_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "model"
    with atomic_folder(target) as temporary:
        (temporary / "good").write_text("x")

    def fail(source: Path, destination: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OutputError, match="No space left on device"), atomic_folder(target) as temporary:
        (temporary / "new").write_text("x")
    assert names(target) == ["good"] and names(tmp_path) == ["model"]


def test_make_folder(tmp_path: Path) -> None:
    assert make_folder(tmp_path / "a" / "b").is_dir()
    assert make_folder(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert names(tmp_path / "a" / "b") == []


def test_names_as_long_as_the_file_system_allows(tmp_path: Path) -> None:
    for name in ("x" * 251 + ".csv", "x." + "y" * 253, "ä" * 125 + ".json"):
        write_text(tmp_path / name, "x")
        assert (tmp_path / name).read_text() == "x"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_named_with_the_output(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, *_: object, **__: object) -> int:
        path.touch()
        raise OSError(number, os.strerror(number), "/tmp/elsewhere")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OutputError, match=r"new/a\.txt cannot be written \(.*\); make room there"):
        write_text(tmp_path / "new" / "a.txt", "x")
    room = pytest.raises(OutputError, match=r"model cannot be written \(.*\); make room there")
    with room, atomic_folder(tmp_path / "new" / "model") as folder:
        (folder / "x").write_text("x")
    assert names(tmp_path / "new") == []


def test_outputs_that_differ_only_in_case_are_one(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="written twice"):
        check_outputs([tmp_path / "a" / "b.png", tmp_path / "A" / "B.png"])
    check_outputs([tmp_path / "a.png", tmp_path / "b.png"], inputs=[tmp_path / "gone", tmp_path / "c.png"])


# --- claims, and what killed processes leave

OWNER = """
import pathlib, sys, time
from tnet.files import atomic_folder, atomic_path, claimed
folder = pathlib.Path(sys.argv[1])
with claimed(folder), atomic_path(folder / "deep" / "a.csv") as file, atomic_folder(folder / "model") as model:
    file.touch(), (model / "x").touch()
    print("ready", flush=True)
    time.sleep(60)
"""


def test_a_claim_ends_with_the_work(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "run"
    with claimed(folder):
        with pytest.raises(OutputError, match=rf"run is in use by process {os.getpid()} on .* since \d{{4}}-.*--out"):
            claimed(folder).__enter__()
        assert names(folder) == [CLAIM_NAME]
    assert names(tmp_path) == [], "empty folders go too"
    with pytest.raises(ZeroDivisionError), claimed(folder):
        (folder / "kept").touch()
        raise ZeroDivisionError
    assert names(folder) == ["kept"]
    with pytest.raises(OutputError, match="kept cannot be written"):
        claimed(folder / "kept").__enter__()


def test_a_killed_process_loses_its_claim_and_its_temporary_files(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with subprocess.Popen([sys.executable, "-c", OWNER, str(run)], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None and owner.stdout.readline() == "ready\n"
        with pytest.raises(OutputError, match=f"in use by process {owner.pid} "):
            claimed(run).__enter__()
        owner.kill()  # it stays a zombie until it is waited for
        time.sleep(0.2)
        (run / ".tnet-mine").touch()
        with atomic_path(run / "b.csv") as of_the_living:
            of_the_living.touch()
            assert len(list(run.rglob(".tnet-*"))) == 5
            with claimed(run):
                assert names(run) == sorted([CLAIM_NAME, ".tnet-mine", of_the_living.name, "deep"])
                assert names(run / "deep") == []
    assert names(run) == [".tnet-mine", "b.csv", "deep"]


@pytest.mark.parametrize(
    ("change", "is_taken_over"),
    [({}, False), ({"start": "1"}, True), ({"pid": 2**22 + 1}, True), ({"host": "elsewhere", "pid": 2**22 + 1}, False)],
)
def test_claims_of_other_processes(change: dict[str, object], is_taken_over: bool, tmp_path: Path) -> None:
    """Of a living one, an ended one whose number another has by now, an ended one, one of another machine."""
    with claimed(tmp_path):
        owner = json.loads((tmp_path / CLAIM_NAME).read_text())
    text = json.dumps(owner | change)
    (tmp_path / CLAIM_NAME).write_text(text)
    if is_taken_over:
        with claimed(tmp_path):
            assert json.loads((tmp_path / CLAIM_NAME).read_text())["pid"] == os.getpid()
        assert names(tmp_path) == []
    else:
        with pytest.raises(OutputError, match=r"delete .*\.tnet-claim if it has ended"):
            claimed(tmp_path).__enter__()
        assert (tmp_path / CLAIM_NAME).read_text() == text


@pytest.mark.parametrize("text", ["", "half", "[]", '{"pid": "x"}'])
def test_a_claim_that_was_cut_off_is_kept_for_a_minute(text: str, tmp_path: Path) -> None:
    claim = tmp_path / CLAIM_NAME
    claim.write_text(text)
    with pytest.raises(OutputError, match="in use by another process"):
        claimed(tmp_path).__enter__()
    os.utime(claim, (0, time.time() - 100))
    with claimed(tmp_path):
        pass
    assert names(tmp_path) == []


@pytest.mark.parametrize("stem", ["x" * 251, "ä" * 125, "漢" * 84, "x" * 200])
def test_a_long_name_is_cut_and_stays_its_own(tmp_path: Path, stem: str) -> None:
    taken: set[str] = set()
    names = [name_after(f"{stem}.png", ".geojson", taken) for _ in range(2)]
    names.append(name_after(f"{stem[:-1]}y.png", ".geojson", taken))
    assert len(set(names)) == 3 and all(name.startswith(stem[:30]) for name in names)
    for name in names:
        write_text(tmp_path / name, "text")  # beside a temporary file with a longer name
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
