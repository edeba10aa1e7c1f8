"""Jobs on Ray: the parts of the local engine, and addresses where no cluster is."""

from __future__ import annotations

import signal
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.helpers import tiny_config
from typer.testing import CliRunner

from tnet.cli.main import app
from tnet.errors import ConfigError
from tnet.inference.cluster import ray_engine
from tnet.inference.job import JobReport, predict_into
from tnet.models.tnet import TNet


def parts(out: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (Path(out) / "parts").iterdir()}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")  # Ray's
def test_ray_goes_on_with_a_job_as_the_local_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(3)
    model = TNet(tiny_config()).eval()
    images = [Path(f"{index:02}.png") for index in range(12)]
    for index, path in enumerate(images[:11]):  # the last one is missing
        noise = np.random.default_rng(index).integers(256, size=(40 + index, 64), dtype=np.uint8)
        Image.fromarray(noise).save(path)
    sound = images[5].read_bytes()
    images[5].write_bytes(b"no image")

    def run(out: str, **options: Any) -> JobReport:
        given = {"model_hash": "h", "settings": {}, "part_rows": 4, "workers": 0, "device": "cpu", "progress": False}
        return predict_into(out, model, images, **given, batch_size=3, **options)

    run("local")
    run("mixed", shard=(2, 3))  # part 1, with the damaged image
    images[5].write_bytes(sound)
    run("local", retry_failed=True)
    handler = signal.getsignal(signal.SIGTERM)
    report = run("mixed", retry_failed=True, engine=ray_engine())
    assert signal.getsignal(signal.SIGTERM) is handler
    assert (report.predicted, report.failed, report.new) == (11, 1, 9) and report.errors == {"missing": 1}
    assert parts("mixed") == parts("local")


@pytest.mark.parametrize("address", ["", "host", "host:", ":6379", "host:0", "host:65536", "a b:1", "h:1\0", "-" * 999])
def test_an_address_is_a_host_and_a_port(address: str) -> None:
    with pytest.raises(ConfigError, match="give host and port, such as 10.0.0.5:6379"):
        ray_engine(address)


def test_an_address_where_nothing_listens() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ConfigError, match=f"no Ray cluster answers at {address} .*refused"):
            ray_engine(address)


@pytest.mark.parametrize("options", [["--engine", "ray"], ["--ray-address", "host:1", "--out", "out"]])
def test_ray_is_for_jobs(options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["predict", ".", ".", *options])
    assert result.exit_code == 2 and "for jobs; give a folder as --out" in result.stderr
    assert not Path("out").exists()
