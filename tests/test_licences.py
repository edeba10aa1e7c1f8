"""What is installed with tnet may be used by everyone: no licence that is unknown or asks for more than to be named."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, metadata, requires

from packaging.requirements import Requirement

_FREE = re.compile(r"MIT|BSD|Apache|ISC|PSF|Python Software Foundation|MPL|Mozilla|Zlib|matplotlib", re.IGNORECASE)
# OpenSlide is linked, not changed; NVIDIA's libraries come with PyTorch.
_KNOWN = {"openslide-bin": "LGPL-2.1", "openslide-python": "LGPL-2.1", "cuda-toolkit": ""}
_COPYLEFT = re.compile(r"\bA?GPL|SSPL|Commons Clause|Non-?Commercial", re.IGNORECASE)


def installed(name: str, extras: Sequence[str], found: dict[str, str]) -> dict[str, str]:
    """The licence of a package and of all that it needs here."""
    key = re.sub(r"[-_.]+", "-", name).lower()
    if key in found:
        return found
    try:
        about = metadata(name)
    except PackageNotFoundError:
        return found
    classes = [text for text in about.get_all("Classifier", []) if text.startswith("License")]
    found[key] = "; ".join([about.get("License-Expression") or "", (about.get("License") or "")[:200], *classes])
    for line in requires(name) or []:
        needed = Requirement(line)
        if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            installed(needed.name, sorted(needed.extras), found)
    return found


def test_licences_are_free() -> None:
    licences = installed("tnet", ["all"], {})
    assert len(licences) > 60
    for name, text in licences.items():
        if name.startswith("nvidia-"):
            continue
        if name in _KNOWN:
            assert _KNOWN[name] in text
        else:
            assert _FREE.search(text) and not _COPYLEFT.search(text), f"{name}: {text!r}"
