from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tnet.scenes.readers import READER_KINDS, doctor
from tnet.scenes.readers.doctor import reader_status


def test_all_readers_work_here() -> None:
    found = reader_status()
    assert tuple(status.kind for status in found) == READER_KINDS
    for status in found:
        assert status.installed and status.works, status
        assert status.versions and all(status.versions.values())
    assert [status.extra for status in found] == ["", "wsi", "geo", "ome", "ome"]
    assert "GDAL" in found[2].detail and "OpenSlide" in found[1].detail


def test_what_is_missing_or_broken_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = doctor.find_spec
    monkeypatch.setattr(doctor, "find_spec", lambda name: None if name == "rasterio" else find_spec(name))
    monkeypatch.setattr(doctor, "version", _no_version)

    def write_other(path: Any, pixels: Any) -> None:
        doctor._write_png(path, np.ascontiguousarray(255 - pixels))

    def fail(path: Any, pixels: Any) -> None:
        raise OSError("libfoo.so.3: cannot open\nshared object")

    monkeypatch.setitem(doctor._WRITERS, "pillow", write_other)
    monkeypatch.setitem(doctor._WRITERS, "zarr", fail)
    found = {status.kind: status for status in reader_status()}
    assert not found["rasterio"].installed and not found["rasterio"].works and found["rasterio"].versions == {}
    assert found["pillow"].installed and not found["pillow"].works and "other pixels" in found["pillow"].detail
    assert found["zarr"].installed and not found["zarr"].works
    assert found["zarr"].detail == "OSError: libfoo.so.3: cannot open shared object"
    assert found["tifffile"].works


def _no_version(package: str) -> str:
    raise doctor.PackageNotFoundError(package)
