"""Damaged and malicious files: an error that names the file, or the right picture; soon, in bounds, and from here."""

from __future__ import annotations

import http.server
import os
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.helpers import regions
from tests.scenes import hostile
from tests.scenes.examine import Case, Outcome, complaint, complaints, examine, picture
from tests.scenes.readers import make
from torch import Tensor
from torch.utils.data import DataLoader

from tnet.errors import ImageError
from tnet.scenes import FileScene, LazyBatch, open_scene

pytestmark = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is told by Linux only")

SEEDS = range(1)
GROUPS: dict[str, Callable[[Path], list[Case]]] = {
    "sound": lambda folder: [
        Case(str(hostile.write(folder, form)), "right", tolerance) for form, (_, tolerance) in hostile.SOUND.items()
    ],
    **{"truncations": hostile.truncations, "giants": hostile.giants, "rings": hostile.rings, "bombs": hostile.bombs},
    **{"misnamed": hostile.misnamed, "missing": hostile.missing, "no files": hostile.no_files},
    "flipped pixels": partial(hostile.flipped_pixels, seeds=SEEDS),
}


class Requests:
    """A server on this machine that notes what it is asked for."""

    def __init__(self) -> None:
        asked: list[str] = []
        self.asked = asked

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked.append(self.path)
                self.send_error(404)

            do_HEAD = do_GET  # noqa: N815

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture(scope="module")
def requests() -> Iterator[Requests]:
    found = Requests()
    thread = threading.Thread(target=found.server.serve_forever)
    thread.start()
    yield found
    found.server.shutdown()
    found.server.server_close()
    thread.join()


@pytest.fixture(scope="module")
def examined(tmp_path_factory: pytest.TempPathFactory, requests: Requests) -> dict[str, list[tuple[Case, Outcome]]]:
    """All groups, looked at in one process, which may reach the server directly."""
    root = tmp_path_factory.mktemp("hostile")
    groups = {}
    more: dict[str, Callable[[Path], list[Case]]] = {
        "elsewhere": partial(hostile.elsewhere, url=requests.url),
        "another picture": lambda folder: [Case(str(make.png(folder / "a", picture()[::-1])), "not wrong")],
    }
    for name, make_cases in (GROUPS | more).items():
        folder = root / name
        folder.mkdir()
        groups[name] = make_cases(folder)
    cases = [case for group in groups.values() for case in group]
    outcomes = iter(examine(cases, {"no_proxy": "127.0.0.1"}))
    return {name: [(case, next(outcomes)) for case in group] for name, group in groups.items()}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("group", [*GROUPS, "elsewhere"])
def test_nothing_goes_wrong(examined: dict[str, list[tuple[Case, Outcome]]], group: str, requests: Requests) -> None:
    found = [text for case, outcome in examined[group] if (text := complaint(case, outcome))]
    assert not found, "\n".join(found)
    assert len(examined[group]) > 4
    assert requests.asked == []


def test_damage_is_told_in_most_cases(examined: dict[str, list[tuple[Case, Outcome]]]) -> None:
    """Else the tests above would pass on files that are not damaged."""
    for group in ("truncations", "flipped pixels"):
        told = [bool(outcome.errors) for _, outcome in examined[group]]
        assert np.mean(told) > 0.8, group


def test_the_harness_finds_what_it_is_for(examined: dict[str, list[tuple[Case, Outcome]]]) -> None:
    """Another picture, a limit that is passed, an error that is not ours."""
    ((case, outcome),) = examined["another picture"]
    assert "gave a wrong picture" in complaint(case, outcome)
    good = Outcome(case.path, True, ["right"])
    assert complaint(case, good) == ""
    for change, words in {
        "seconds": (11.0, "took 11.0 s"),
        "growth_bytes": (2**30, "took 1024 MiB"),
        "noise": ("libtiff: warning", "made noise"),
        "reached": (["socket.connect 10.0.0.1"], "reached for"),
        "errors": (["OSError: no"], "raised something else"),
    }.items():
        bad = Outcome(**{**vars(good), change: words[0]})
        assert words[1] in complaint(case, bad)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("group", ["flips", "flipped_pixels"])
def test_many_more_flips(tmp_path: Path, group: str) -> None:
    cases = getattr(hostile, group)(tmp_path, range(100, 108))
    assert complaints(cases) == []


# --- files that change while they are looked at

LIVING = ("png", "jpeg", "tiled_tiff", "pyramid_tiff", "cog", "ome_tiff", "slide", "ome_zarr_0_4", "ome_zarr_0_5")


def look(scene: FileScene, box: tuple[int, int, int, int] = (100, 100, 180, 180)) -> Tensor:
    return scene.glimpse(box, 80, channels=3, resize="antialias", fill=(0.0,))


@pytest.mark.parametrize("form", LIVING)
def test_a_file_that_goes_between_looks(tmp_path: Path, form: str) -> None:
    scene = open_scene(hostile.write(tmp_path, form))
    look(scene)
    scene.path.rename(tmp_path / "elsewhere")
    with pytest.raises(ImageError, match=f"/{form} cannot be read: no such file"):
        look(scene)
    (tmp_path / "elsewhere").rename(scene.path)
    assert torch.isfinite(look(scene)).all()


@pytest.mark.parametrize("form", LIVING)
def test_a_file_that_is_replaced_between_looks(tmp_path: Path, form: str) -> None:
    scene = open_scene(hostile.write(tmp_path, form))
    look(scene)
    other = hostile.SOUND[form][0](tmp_path / "other", picture()[::-1, ::-1].copy())
    scene.path.rename(tmp_path / "elsewhere")
    other.rename(scene.path)
    with pytest.raises(ImageError, match=f"/{form} cannot be read: it was replaced"):
        look(scene)


@pytest.mark.parametrize("form", [form for form in LIVING if "zarr" not in form])
def test_a_file_that_is_cut_short_between_looks(tmp_path: Path, form: str) -> None:
    """In place: it is the same file, open, perhaps mapped into memory."""
    scene = open_scene(hostile.write(tmp_path, form))
    look(scene)
    os.truncate(scene.path, 100)
    with pytest.raises(ImageError, match=f"/{form} cannot be read: it was replaced"):
        look(scene)


@pytest.mark.parametrize("version", ["0_4", "0_5"])
def test_a_level_that_goes_between_looks(tmp_path: Path, version: str) -> None:
    scene = open_scene(hostile.write(tmp_path, f"ome_zarr_{version}"))
    expected = look(scene)
    (scene.path / "0").rename(tmp_path / "0")
    with pytest.raises(ImageError, match=f"ome_zarr_{version} cannot be read"):
        look(scene)
    (tmp_path / "0").rename(scene.path / "0")
    assert torch.equal(look(scene), expected)


@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("form", ["png", "tiled_tiff", "cog", "slide", "ome_zarr_0_5"])
def test_permission_denied(tmp_path: Path, form: str) -> None:
    path = hostile.write(tmp_path, form)
    path.chmod(0)
    try:
        with pytest.raises(ImageError, match=f"{form} cannot be read"):
            open_scene(path)
    finally:
        path.chmod(0o700)


# --- the same whoever reads, in this process and others

WHERE = regions([(0, 0, 243, 317), (-9, 5, 71, 85), (100, 100, 180, 180), (200, 250, 280, 330)] * 2, [0, 1, 2, 3] * 2)
FOUR = ("cog", "pyramid_tiff", "ome_zarr_0_5", "slide")


def four_scenes(folder: Path) -> list[FileScene]:
    return [FileScene(hostile.write(folder, form)) for form in FOUR]


def collate(scenes: list[FileScene], threads: int) -> Tensor:
    return LazyBatch(scenes, 3, threads=threads).glimpse(WHERE, 64)


def test_any_number_of_threads(tmp_path: Path) -> None:
    scenes = four_scenes(tmp_path)
    alone = collate(scenes, 0)
    assert all(torch.equal(collate(scenes, threads), alone) for threads in (1, 4, 4, 4))


@pytest.mark.parametrize(
    ("method", "workers"),
    [
        ("fork", 2),
        pytest.param("spawn", 1, marks=pytest.mark.slow),
        pytest.param("fork", 4, marks=pytest.mark.slow),
    ],
)
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker processes:UserWarning")
@pytest.mark.timeout(240)
def test_any_number_of_processes(tmp_path: Path, method: str, workers: int) -> None:
    """Of libraries that hold threads, locks and open files of their own; all have been used here before."""
    scenes = four_scenes(tmp_path)
    alone = collate(scenes, 2)
    loader: DataLoader[Any] = DataLoader(
        scenes,  # type: ignore[arg-type]
        batch_sampler=[[0, 1, 2, 3]] * 4,
        num_workers=workers,
        collate_fn=partial(collate, threads=2),
        multiprocessing_context=method,
    )
    seen = list(loader)
    assert len(seen) == 4 and all(torch.equal(each, alone) for each in seen)
