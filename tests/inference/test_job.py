"""Jobs: parts, resuming, shards, failed images, and what is refused."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import torch
from PIL import Image
from tests.helpers import tiny_config

from tnet.errors import ConfigError, MemoryWarning, OutputError, PartWarning
from tnet.files import claimed
from tnet.inference import predictor
from tnet.inference.job import JobReport, predict_into
from tnet.inference.predictor import iter_predictions
from tnet.inference.records import Prediction, Unreadable
from tnet.models.io import save_model
from tnet.models.tnet import TNet
from tnet.traversal import BestFirst


@pytest.fixture(scope="module")
def model() -> TNet:
    torch.manual_seed(3)
    return TNet(tiny_config(class_names=("ant", "bee", "cat", "dog", "elk"))).eval()


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{index:02}.png" for index in range(11)]
    for index, path in enumerate(paths):
        noise = np.random.default_rng(index).integers(256, size=(40 + index, 64), dtype=np.uint8)
        Image.fromarray(noise).save(path)
    return paths


def run(out: Path, model: TNet, images: list[Path], **options: Any) -> JobReport:
    settings = {"looks": repr(options.get("looks"))}
    given = {"model_hash": "h", "settings": settings, "part_rows": 4, "progress": False, "batch_size": 3, **options}
    return predict_into(out, model, images, **given)


def files(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((out / "parts").iterdir())}


def rows(out: Path) -> list[dict[str, Any]]:
    return pyarrow.parquet.read_table(out / "parts").to_pylist()


def test_rows_are_the_predictions_in_order(model: TNet, images: list[Path], tmp_path: Path) -> None:
    report = run(tmp_path / "out", model, images)
    assert (report.images, report.predicted, report.failed, report.missing, report.new) == (11, 11, 0, 0, 11)
    assert json.loads((tmp_path / "out/report.json").read_text()) == asdict(report)
    assert list(files(tmp_path / "out")) == [f"part-{number:06}.parquet" for number in range(3)]
    found = rows(tmp_path / "out")
    assert [row["row"] for row in found] == list(range(11))
    for row, item in zip(found, iter_predictions(model, images, progress=False, batch_size=1), strict=True):
        assert isinstance(item, Prediction)
        assert (row["path"], row["label"], row["error"]) == (item.path, item.label, None)
        assert row["probability"] == pytest.approx(item.probability, abs=1e-5)
        boxes = [region["box_l0_yxyx"] for region in json.loads(row["regions"])]
        assert boxes == [list(region.box_l0_yxyx) for region in item.regions]


@pytest.mark.parametrize("options", [{}, {"search": BestFirst(looks=3, levels=2)}], ids=["looks", "search"])
def test_any_way_to_the_end_gives_the_same_bytes(
    options: dict[str, Any], model: TNet, images: list[Path], tmp_path: Path
) -> None:
    run(tmp_path / "whole", model, images, **options)
    expected = files(tmp_path / "whole")
    for shard in ((2, 3), (1, 3), (3, 3)):
        report = run(tmp_path / "shards", model, images, shard=shard, **options)
    assert report.missing == 0 and report.images == 11
    assert files(tmp_path / "shards") == expected
    for missing in ([0], [1], [2], [0, 2]):
        for number in missing:
            (tmp_path / f"whole/parts/part-{number:06}.parquet").unlink()
        report = run(tmp_path / "whole", model, images, **options)
        assert report.new == sum(len(range(number * 4, min(number * 4 + 4, 11))) for number in missing)
        assert files(tmp_path / "whole") == expected
    assert run(tmp_path / "whole", model, images, **options).new == 0


def test_a_shard_counts_what_others_have_still_to_write(model: TNet, images: list[Path], tmp_path: Path) -> None:
    report = run(tmp_path / "out", model, images, shard=(1, 2))
    assert (report.predicted, report.missing) == (7, 4)
    assert not (tmp_path / "out/report.json").exists()
    assert run(tmp_path / "out", model, images, shard=(2, 2)).missing == 0
    assert (tmp_path / "out/report.json").exists()


def test_failed_images_are_rows_with_their_kind_and_are_tried_again(
    model: TNet, images: list[Path], tmp_path: Path
) -> None:
    sound = images[5].read_bytes()
    images[5].write_bytes(b"no image")
    Image.new("L", (8, 8)).save(images[6])
    images[10].unlink()
    report = run(tmp_path / "out", model, images)
    assert (report.predicted, report.failed) == (8, 3)
    assert report.errors == {"unreadable": 1, "too small": 1, "missing": 1}
    found = rows(tmp_path / "out")
    assert [row["row"] for row in found if row["error"] is not None] == [5, 6, 10]
    assert all((row["label"] is None) == (row["error"] is not None) for row in found)
    images[5].write_bytes(sound)
    assert run(tmp_path / "out", model, images).new == 0
    report = run(tmp_path / "out", model, images, retry_failed=True)
    assert (report.predicted, report.failed, report.new) == (9, 2, 3)
    again = rows(tmp_path / "out")
    assert again[5]["label"] is not None and again[5]["path"] == str(images[5])
    assert [row for row in again if row["row"] != 5] == [row for row in found if row["row"] != 5]


def test_an_interrupted_part_is_not_there(
    model: TNet, images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = predictor.load_input

    def stop_at_six(image: Path, *arguments: Any, **options: Any) -> Any:
        if image == images[6]:
            raise KeyboardInterrupt
        return load(image, *arguments, **options)

    monkeypatch.setattr(predictor, "load_input", stop_at_six)
    with pytest.raises(KeyboardInterrupt) as stopped:
        run(tmp_path / "out", model, images)
    assert stopped.value.__notes__ == [f"1 of 3 parts are in {tmp_path / 'out'}; the same command goes on"]
    assert list(files(tmp_path / "out")) == ["part-000000.parquet"]
    monkeypatch.undo()
    assert run(tmp_path / "out", model, images).new == 7


@pytest.mark.parametrize("left", [0, 4, 700])
def test_parts_cut_short_are_written_again(left: int, model: TNet, images: list[Path], tmp_path: Path) -> None:
    run(tmp_path / "out", model, images)
    expected = files(tmp_path / "out")
    path = tmp_path / "out/parts/part-000001.parquet"
    path.write_bytes(path.read_bytes()[:left])
    with pytest.warns(PartWarning, match="part-000001.parquet is damaged"):
        run(tmp_path / "out", model, images)
    assert files(tmp_path / "out") == expected


def test_another_job_is_refused(model: TNet, images: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(out, model, images)
    before = files(out)
    for changes, key in (
        ({"model_hash": "other"}, "model"),
        ({"part_rows": 5}, "part_rows"),
        ({"looks": 1}, "looks"),
    ):
        with pytest.raises(OutputError, match=rf"holds another job \({key} "):
            run(out, model, images, **changes)
    with pytest.raises(OutputError, match="images 11 -> 10, list"):
        run(out, model, images[:10])
    with pytest.raises(OutputError, match="holds another job \\(list"):
        run(out, model, images[::-1])
    assert files(out) == before
    (out / "job.json").write_text("{")
    with pytest.raises(OutputError, match=r"job\.json is damaged"):
        run(out, model, images)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("keep")
    with pytest.raises(OutputError, match="is not empty and holds no job"):
        run(tmp_path / "mine", model, images)
    assert (tmp_path / "mine/notes.txt").read_text() == "keep"


def test_two_processes_never_work_on_one_part(model: TNet, images: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    with claimed(out / "claims/1-of-2"):
        (out / "job.json").unlink(missing_ok=True)
        with pytest.raises(OutputError, match="is not empty and holds no job"):
            run(out, model, images, shard=(1, 2))
    run(out, model, images, shard=(2, 2))
    with claimed(out / "claims/1-of-2"):
        with pytest.raises(OutputError, match=f"in use by process {os.getpid()}"):
            run(out, model, images, shard=(1, 2))
        with pytest.raises(OutputError, match=f"in use by process {os.getpid()}"):
            run(out, model, images)  # all parts
        assert run(out, model, images, shard=(2, 2)).new == 0
    assert run(out, model, images).missing == 0


@pytest.mark.parametrize("shard", [(0, 2), (3, 2), (1, 0), (-1, 1)])
def test_shard_numbers_out_of_range(shard: tuple[int, int], model: TNet, images: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is out of range; give 1/4 to 4/4"):
        run(tmp_path / "out", model, images, shard=shard)
    assert not (tmp_path / "out").exists()


def test_repeated_images_are_rows_of_their_own(model: TNet, images: list[Path], tmp_path: Path) -> None:
    run(tmp_path / "out", model, images[:1] * 6)
    found = rows(tmp_path / "out")
    assert [row["row"] for row in found] == list(range(6)) and len({row["path"] for row in found}) == 1


def test_a_batch_that_does_not_fit_is_divided(
    model: TNet, images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = [row["label"] for row in rows_of(tmp_path / "expected", model, images)]
    see, sizes = TNet.forward, []

    def forward(self: TNet, batch: Any, *arguments: Any, **options: Any) -> Any:
        sizes.append(len(batch))
        if len(batch) > 2:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")
        if batch[0].shape[-2:] == (42, 64):
            raise MemoryError
        return see(self, batch, *arguments, **options)

    monkeypatch.setattr(TNet, "forward", forward)
    with pytest.warns(MemoryWarning, match="too little memory for a batch"):
        found = rows_of(tmp_path / "out", model, images, batch_size=4)
    assert sizes[:3] == [4, 2, 2]
    assert [row["error_kind"] for row in found] == [None, None, "memory", *[None] * 8]
    assert [row["label"] for row in found if row["error"] is None] == [*expected[:2], *expected[3:]]


def rows_of(out: Path, model: TNet, images: list[Path], **options: Any) -> list[dict[str, Any]]:
    run(out, model, images, **options)
    return rows(out)


def test_kinds_of_errors(tmp_path: Path) -> None:
    assert Unreadable.of(str(tmp_path / "none.png"), OSError("gone")).kind == "missing"


def start(arguments: list[str]) -> subprocess.Popen[bytes]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, "-m", "tnet", "predict", *arguments, "--device", "cpu"]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
    )


def kill_at_random(arguments: list[str], out: Path, kills: int, seed: int) -> Iterator[int]:
    """Start a job again and again, and kill it while it writes parts; yields the number of parts after each kill."""
    draw = random.Random(seed)
    for _ in range(kills):
        before = len(list(out.glob("parts/part-*")))
        process = start(arguments)
        until = time.monotonic() + 60
        while process.poll() is None and len(list(out.glob("parts/part-*"))) == before and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 0.3))
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        yield len(list(out.glob("parts/part-*")))


# All of the record: TNET_KILLS=20 TNET_KILL_IMAGES=2000
WORKERS = (1, 3) if "TNET_KILLS" in os.environ else (3,)


@pytest.mark.slow
@pytest.mark.parametrize("workers", WORKERS)
def test_kills_lose_and_double_nothing(workers: int, model: TNet, tmp_path: Path) -> None:
    save_model(model, tmp_path / "model")
    (tmp_path / "images").mkdir()
    count, kills = int(os.environ.get("TNET_KILL_IMAGES", 200)), int(os.environ.get("TNET_KILLS", 2))
    for index in range(count):
        noise = np.random.default_rng(index).integers(256, size=(48, 48), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / f"images/{index:05}.png")
    given = [str(tmp_path / "model"), str(tmp_path / "images"), "--part-rows", "20"]
    _, errors = (process := start([*given, "--out", str(tmp_path / "whole")])).communicate()
    assert process.returncode == 0, errors
    out = tmp_path / "killed"
    arguments = [*given, "--out", str(out), "--workers", str(workers)]
    assert [*kill_at_random(arguments, out, kills, seed=workers)][-1] > 0
    _, errors = (process := start(arguments)).communicate()
    assert process.returncode == 0, errors
    assert files(out) == files(tmp_path / "whole")
    assert json.loads((out / "report.json").read_text())["predicted"] == count
