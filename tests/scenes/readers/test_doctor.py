from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tnet.scenes.readers import READERS, base, doctor
from tnet.scenes.readers.doctor import reader_status


def test_all_readers_work_here() -> None:
    found = reader_status()
    assert [status.kind for status in found] == list(READERS)
    for status in found:
        assert status.installed and status.works, status
        assert status.versions and all(status.versions.values())
    assert [status.extra for status in found] == ["", "wsi", "geo", "ome", "ome"]
    assert "GDAL" in found[2].detail and "OpenSlide" in found[1].detail


def test_missing_and_broken_readers_are_distinguished(monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = base.find_spec
    monkeypatch.setattr(base, "find_spec", lambda name: None if name == "rasterio" else find_spec(name))
    monkeypatch.setattr(doctor, "version", _no_version)

    def write_other(path: Any, pixels: Any) -> None:
        doctor.write_tiff(path, np.ascontiguousarray(255 - pixels))

    def fail(path: Any, pixels: Any) -> None:
        raise OSError("libfoo.so.3: cannot open\nshared object")

    for name, write in (("pillow", write_other), ("zarr", fail)):
        monkeypatch.setitem(READERS._entries, name, replace(READERS[name], write_sample=write))
    found = {status.kind: status for status in reader_status()}
    assert not found["rasterio"].installed and not found["rasterio"].works and found["rasterio"].versions == {}
    assert found["pillow"].installed and not found["pillow"].works and "other pixels" in found["pillow"].detail
    assert found["zarr"].installed and not found["zarr"].works
    assert found["zarr"].detail == "OSError: libfoo.so.3: cannot open shared object"
    assert found["tifffile"].works


def _no_version(package: str) -> str:
    raise doctor.PackageNotFoundError(package)
