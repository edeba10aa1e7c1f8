"""Addresses of other machines are named as such by everything that takes a path."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

import tnet
from tnet.cli.main import app
from tnet.data.config import DataConfig
from tnet.data.folder import ImageFolder
from tnet.data.loading import open_data
from tnet.data.table import ImageTable
from tnet.errors import TnetError
from tnet.files import atomic_path, make_folder
from tnet.inference.inputs import find_inputs
from tnet.remote import check_local
from tnet.scenes import open_scene
from tnet.scenes.decode import image_size_hw, load_image
from tnet.suggest.survey import find_layout
from tnet.weights import read_tensors

ADDRESSES = [
    "s3://bucket/a.tif",
    "https://example.org/a.tif",
    "gs://bucket/a/b",
    "az://c/a.zarr",
    "/vsicurl/http://x/a",
]


@pytest.mark.parametrize("address", [*ADDRESSES, "S3:/bucket/a", "abfs+x.y://a/b", "/vsis3_streaming/a"])
def test_addresses_are_recognized_with_one_slash_too(address: str) -> None:
    shown = address if "://" in address or address[0] == "/" else address.replace(":/", "://")
    for text in (address, Path(address), address.replace("://", ":/")):
        with pytest.raises(TnetError, match="is a remote address, but only local files are .*; copy it") as caught:
            check_local(text)
        if "http" not in address[5:]:
            assert shown in str(caught.value)


@pytest.mark.parametrize("path", ["a.tif", "C:/a.tif", "C:\\a.tif", "/vsi/a", "/vsidata/a", "a:b", "a/s3:b", ""])
def test_paths_are_no_addresses(path: str) -> None:
    check_local(path)


def test_a_local_folder_may_have_the_name_of_a_scheme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s3:/bucket").mkdir(parents=True)
    check_local("s3://bucket")
    with pytest.raises(TnetError, match="file://home/a.tif is a URL, but a path is expected; leave out file://"):
        check_local("file:///home/a.tif")


@pytest.mark.parametrize(
    "use",
    [
        open_scene,
        lambda path: open_scene(path, reader="tifffile"),
        load_image,
        image_size_hw,
        lambda path: find_inputs([path]),
        lambda path: find_inputs([path], check_exists=False),
        lambda path: find_inputs([f"{path}/list.csv"]),
        lambda path: find_inputs([f"{path}/list.txt"]),
        tnet.load_model,
        lambda path: tnet.predict(path, "x"),
        tnet.load_recipe,
        ImageFolder,
        ImageTable,
        lambda path: open_data(DataConfig(root=path), 3, 0),
        lambda path: open_data(DataConfig(root=path, kind="cub"), 3, 0),
        lambda path: open_data(DataConfig(train=path), 3, 0),
        lambda path: read_tensors(Path(path)),
        find_layout,
        make_folder,
        lambda path: atomic_path(path).__enter__(),
    ],
)
def test_everything_that_takes_a_path_names_an_address(
    use: Callable[[str], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for address in ADDRESSES[:2]:
        with pytest.raises(TnetError, match=f"{address.removesuffix('/a.tif')}.* is a remote address"):
            use(address)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", [".csv", ".txt"])
def test_a_manifest_names_the_address_in_it(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"list{suffix}").write_text("path\ns3://bucket/a.tif\n" if suffix == ".csv" else "s3://bucket/a.tif\n")
    for check in (True, False):
        with pytest.raises(TnetError, match="s3://bucket/a.tif is a remote address"):
            find_inputs([tmp_path / f"list{suffix}"], check_exists=check)


@pytest.mark.parametrize(
    "arguments",
    [
        "predict s3://b/m photos", "predict m s3://b/photos", "predict m photos --out s3://b/out.csv",
        "explain m https://x.org/a.png", "explain m photos --out=gs://b/out", "evaluate s3://b/run",
        "evaluate run s3://b/val", "report s3://b/run",
        "report run --data s3://b/val", "train s3://b/recipe.yaml", "train own_images data.root=s3://b/photos",
        "train own_images --out s3://b/run", "suggest s3://b/photos", "info s3://b/a.tif", "compare s3://b/suite.yaml",
        "pyramid s3://b/a.tif out.tif", "pyramid a.tif s3://b/out.tif", "demo --out s3://b/demo",
        "data check cub s3://b/cub",
    ],
)  # fmt: skip
def test_every_verb_names_an_address(arguments: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, arguments.split())
    assert result.exit_code == 1
    assert "://" in result.stderr and "is a remote address, but only local files are read" in result.stderr
    assert result.stderr.count("\n") == 1 and list(tmp_path.iterdir()) == []
