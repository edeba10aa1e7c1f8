"""The recipes that come with the package, by name: paths below ``recipes/`` without ``.yaml``."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import tnet

_PACKAGE = Path(tnet.__file__).parent
# In a wheel the folder lies inside the package; in a checkout at its root.
_FOLDERS = (_PACKAGE / "recipes", _PACKAGE.parents[1] / "recipes")


@lru_cache(maxsize=1)
def bundled_recipes() -> dict[str, Path]:
    """Return the path of each bundled recipe and comparison, by name, sorted."""
    folder = next((folder for folder in _FOLDERS if (folder / "own_images.yaml").is_file()), None)
    if folder is None:
        return {}
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.rglob("*.yaml"))}


def find_recipe(recipe: str | Path) -> Path:
    """Return the path of an existing file, or else of a bundled recipe; other paths are returned unchanged."""
    path = Path(recipe)
    name = path.as_posix().removeprefix("recipes/").removesuffix(".yaml")
    return path if path.exists() else bundled_recipes().get(name, path)
