"""Variables from .npz files: what TensorFlow's variables look like in one, and files that are damaged or hostile."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tnet.errors import CheckpointError
from tnet.interop import CONVERT
from tnet.interop import variables as module
from tnet.interop.variables import Variables

VALUES: dict[str, Any] = {
    "stem/kernel": np.arange(54, dtype=np.float32).reshape(3, 3, 2, 3),
    "stem/bias": np.array([1.5, -2.0, np.inf]),
    "step": np.array(7, np.int64),
    "empty": np.zeros((0, 4), np.float32),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    np.savez(tmp_path / "model.npz", **VALUES)
    return tmp_path / "model.npz"


def refused(path: Path) -> str:
    with pytest.raises(CheckpointError) as error:
        found = Variables(path)
        for name in found.shapes:
            found.read(name)
    message = str(error.value)
    assert str(path) in message and "; " in message
    return message


def header(shape: str, dtype: str = "<f4", version: bytes = b"\1\0") -> bytes:
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY" + version + len(text).to_bytes(2, "little") + text


def write_members(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return path


def test_what_tensorflow_wrote(repository: Path) -> None:
    found = Variables(repository / "tests" / "data" / "tf_npz" / "ckpt-1.npz")
    expected = {
        "kernel": np.arange(-1, 17, dtype=np.float32).reshape(3, 3, 1, 2),
        "half": np.arange(-1, 5, dtype=np.float16).reshape(2, 3),
        "step": np.array(-1, np.int64),
        "flags": np.array([True, False, True]),
        "none": np.zeros((0, 4)),
    }
    for name, value in expected.items():
        key = f"model/{name}/.ATTRIBUTES/VARIABLE_VALUE"
        assert found.dtypes[key] == value.dtype and found.shapes[key] == value.shape
        assert np.array_equal(found.read(key), value)
    assert found.dtypes["model/brain/.ATTRIBUTES/VARIABLE_VALUE"].kind == "V"  # bfloat16, which NumPy lacks
    assert found.dtypes["_CHECKPOINTABLE_OBJECT_GRAPH"].kind == "S"
    assert found.scalar("model/step/.ATTRIBUTES/VARIABLE_VALUE") == -1
    assert len(found.shapes) == len(expected) + 3


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_values_and_names_with_slashes(save: Any, tmp_path: Path) -> None:
    save(tmp_path / "a.npz", **VALUES, fortran=np.asfortranarray(VALUES["stem/kernel"]))
    found = Variables(tmp_path / "a.npz")
    for name, value in VALUES.items():
        assert np.array_equal(found.read(name), value) and found.shapes[name] == value.shape
    assert np.array_equal(found.read("fortran"), VALUES["stem/kernel"])


def test_scalars(path: Path) -> None:
    found = Variables(path)
    assert found.scalar("step") == 7 and found.scalar("other") is None
    with pytest.raises(CheckpointError, match="stem/bias"):
        found.scalar("stem/bias")


@pytest.mark.parametrize("name", ["", "ckpt-3", "ckpt-3.index", "ckpt-3.data-00000-of-00001"])
def test_a_tensorflow_checkpoint_names_the_command_that_converts_it(name: str, tmp_path: Path) -> None:
    for file in ("ckpt-3.index", "ckpt-3.data-00000-of-00001", "checkpoint"):
        (tmp_path / file).write_bytes(b"")
    assert "tf.train.load_checkpoint" in refused(tmp_path / name)


def test_missing_files_and_pipes(tmp_path: Path) -> None:
    refused(tmp_path / "missing.npz")
    os.mkfifo(tmp_path / "pipe.npz")
    refused(tmp_path / "pipe.npz")


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.9, 0.999])
def test_truncated(kept: float, path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    refused(path)


def test_a_flipped_bit_is_refused_or_without_effect(path: Path) -> None:
    content = path.read_bytes()
    for at in range(0, len(content), 7):
        path.write_bytes(content[:at] + bytes([content[at] ^ 1 << at % 8]) + content[at + 1 :])
        try:
            found = Variables(path)
            for name in found.shapes:
                assert name not in VALUES or np.array_equal(found.read(name), VALUES[name])
                found.read(name)
        except CheckpointError:
            pass


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.array([print, "text"], dtype=object))
    assert Variables(tmp_path / "a.npz").dtypes["x"].hasobject
    assert "'x'" in refused(tmp_path / "a.npz")


@pytest.mark.parametrize(
    "content",
    [
        header("(1099511627776,)"),  # would be 4 TiB
        header("(4611686018427387904, 4)"),  # overflows 64 bits
        header("(2,)") + bytes(4),
        header("(2,)") + bytes(12),
        header("(-2,)"),
        header("'x'"),
        header("(2,)", dtype="<q9") + bytes(8),
        header("(" * 500),
        header("(2,)", version=b"\4\0") + bytes(8),
        b"\x93NUMPY\2\0" + b"\xff" * 8,
        b"",
        b"not an array",
    ],
    ids=range(12),
)
def test_headers_that_lie(content: bytes, tmp_path: Path) -> None:
    refused(write_members(tmp_path / "a.npz", x=content))


def test_a_member_that_is_not_an_array(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("../evil.txt", b"x")
    assert "'../evil.txt'" in refused(tmp_path / "a.npz")


def test_a_name_that_is_there_twice(tmp_path: Path) -> None:
    array = BytesIO()
    np.save(array, np.zeros(2))
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", array.getvalue())
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("x.npy", array.getvalue())
    assert "'x.npy'" in refused(tmp_path / "a.npz")


def test_a_zip_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_BYTES", 1 << 20)
    np.savez_compressed(tmp_path / "a.npz", x=np.zeros(1 << 18))
    assert (tmp_path / "a.npz").stat().st_size < 1 << 14
    assert "1,048,576" in refused(tmp_path / "a.npz")


def test_too_many_variables(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_VARIABLES", 3)
    assert "4 arrays" in refused(path)


def test_encrypted_and_unknown_compression(path: Path) -> None:
    content = bytearray(path.read_bytes())
    for at, value in ((8, 1), (10, 99)):  # flags and method, counted from the start of an entry of the directory
        changed = bytearray(content)
        changed[changed.index(b"PK\1\2") + at] = value
        path.write_bytes(changed)
        refused(path)


def test_the_command_that_converts(tmp_path: Path) -> None:
    """The shell command itself, with a stand-in for TensorFlow."""
    (tmp_path / "tensorflow.py").write_text(
        "import numpy\n"
        "class Reader:\n"
        "    def __init__(self, path): self.path = path\n"
        "    def get_variable_to_shape_map(self): return {'a/b/kernel': [2], '_CHECKPOINTABLE_OBJECT_GRAPH': []}\n"
        "    def get_tensor(self, name): return b'graph' if name[0] == '_' else numpy.float32([1, 2])\n"
        "class train: load_checkpoint = Reader\n"
    )
    command = CONVERT.replace("python", sys.executable, 1)
    subprocess.run(["sh", "-c", command], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path)}, check=True)
    found = Variables(tmp_path / "model.npz")
    assert found.shapes == {"a/b/kernel": (2,), "_CHECKPOINTABLE_OBJECT_GRAPH": ()}
    assert found.read("a/b/kernel").tolist() == [1, 2]
