"""Imports point the way that docs/architecture.md shows, and what promises to be light imports nothing heavy."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import tnet

SRC = Path(tnet.__file__).parent

# Lowest first. A package imports from lower layers only; packages of one layer do not import each other.
LAYERS = (
    ("errors", "allocator", "stop", "text", "threads"),
    ("remote",),
    ("files", "registry"),
    ("config", "weights"),
    ("geometry",),
    ("scenes", "backbones", "traversal"),
    ("losses",),
    ("models",),
    ("objectives",),
    ("baselines",),
    ("cost", "export"),
    ("data",),
    ("interop",),
    ("inference",),
    ("explain",),
    ("view",),
    ("serve",),
    ("training",),
    ("evaluation",),
    ("suggest", "report"),
    ("demo",),
    ("cli",),
    ("__main__",),
)
RANK = {package: rank for rank, layer in enumerate(LAYERS) for package in layer}


def imports_of(path: Path) -> Iterator[tuple[int, str]]:
    """Line and package of each import of tnet in a file, wherever in the file it stands."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "tnet":
            parts = node.module.split(".")
            for name in [parts[1]] if len(parts) > 1 else [alias.name for alias in node.names]:
                yield node.lineno, name
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("tnet."):
                    yield node.lineno, alias.name.split(".")[1]


def package_of(path: Path) -> str:
    return path.relative_to(SRC).parts[0].removesuffix(".py")


def test_every_package_has_a_layer() -> None:
    packages = {package_of(path) for path in SRC.rglob("*.py")} - {"__init__"}
    assert packages == set(RANK)


@pytest.mark.parametrize("package", [package for layer in LAYERS for package in layer])
def test_imports_point_downwards(package: str) -> None:
    upwards = [
        f"{path.relative_to(SRC)}:{line} imports tnet.{name}"
        for path in sorted(SRC.rglob("*.py"))
        if package_of(path) == package
        for line, name in imports_of(path)
        if name in RANK and name != package and RANK[name] >= RANK[package]
    ]
    assert not upwards


# Each chain runs in one process, since importing PyTorch takes seconds; heavier modules come later.
@pytest.mark.parametrize(
    "chain",
    [
        [("tnet", ("torch", "numpy")), ("tnet.cli.main", ("torch", "numpy"))],
        pytest.param(
            [
                ("tnet.traversal", ("timm", "PIL", "tnet.models", "tnet.scenes")),
                (
                    "tnet.models",
                    ("lightning", "typer", "rasterio", "openslide", "tifffile", "zarr", "tnet.scenes.readers"),
                ),
            ],
            marks=pytest.mark.slow,
        ),
    ],
    ids=["start", "library"],
)
def test_importing_a_module_loads_nothing_heavy(chain: list[tuple[str, tuple[str, ...]]]) -> None:
    code = "import importlib, json, sys\n"
    code += "for name in sys.argv[1:]:\n    importlib.import_module(name)\n    print(json.dumps(list(sys.modules)))"
    command = [sys.executable, "-c", code, *(module for module, _ in chain)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    for (module, heavy), line in zip(chain, lines, strict=True):
        assert not set(heavy) & set(json.loads(line)), module


def test_files_are_short() -> None:
    lines = {
        str(path.relative_to(SRC)): len(path.read_text(encoding="utf-8").splitlines()) for path in SRC.rglob("*.py")
    }
    assert not {path: count for path, count in lines.items() if count > 450}
