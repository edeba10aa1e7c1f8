"""Limits and physical pixel sizes of OME-XML."""

from __future__ import annotations

import math
from pathlib import Path
from xml.etree import ElementTree

from tnet.scenes.guard import unreadable

MAX_PLANES = 1_000_000  # times x channels x depths

# Metres per unit of length, as OME-XML and OME-Zarr write them (lower case).
METRES = {
    **{"m": 1.0, "dm": 1e-1, "cm": 1e-2, "mm": 1e-3, "µm": 1e-6, "μm": 1e-6, "um": 1e-6, "nm": 1e-9, "pm": 1e-12},
    **{"å": 1e-10, "km": 1e3, "in": 0.0254, "ft": 0.3048},
    **{"meter": 1.0, "decimeter": 1e-1, "centimeter": 1e-2, "millimeter": 1e-3, "micrometer": 1e-6, "nanometer": 1e-9},
    **{"picometer": 1e-12, "angstrom": 1e-10, "kilometer": 1e3, "inch": 0.0254, "foot": 0.3048, "micron": 1e-6},
}


def check_ome_xml(path: Path, xml: str, image: int = 0) -> None:
    """Raise ``ImageError`` if it is damaged, claims too many planes, or places channels of an image in other files."""
    try:
        root = ElementTree.fromstring(xml)  # expat itself stops entities that multiply
    except ElementTree.ParseError as error:
        raise unreadable(path, f"its OME-XML is damaged ({error})") from error
    for element in root.iter():
        name = element.tag.rpartition("}")[2]
        if name == "Pixels":
            counts = [element.get(f"Size{axis}", "1") for axis in "TCZ"]
        elif name == "TiffData":
            firsts = [element.get(f"First{axis}", "0") for axis in "TCZ"]
            counts = [element.get("PlaneCount", element.get("NumPlanes", "1"))]
            counts += [str(1 + int(first)) for first in firsts if first.isdigit()]
        elif name.startswith("Along") or name == "ModuloAlongZ":
            counts = [str(_steps(element))]
        else:
            continue
        if not all(count.isascii() and count.isdigit() and len(count) < 10 for count in counts) or (
            math.prod(map(int, counts)) > MAX_PLANES
        ):
            raise unreadable(path, f"its OME-XML describes {' x '.join(counts)[:80]} planes")
    found = [element for element in root.iter() if element.tag.endswith("Pixels")]
    elsewhere = [element.get("MetadataFile", "") for element in root.iter() if element.tag.endswith("BinaryOnly")]
    if root.get("UUID") and image < len(found):
        elsewhere += _elsewhere(found[image], str(root.get("UUID")))
    if elsewhere:
        reason = f"parts of it lie in other files ({elsewhere[0][:80]}), which are not opened"
        raise unreadable(path, reason, "merge them into one file, such as with bfconvert")


def _elsewhere(pixels: ElementTree.Element, own: str) -> list[str]:
    """Names of other files that hold a channel of the first time and depth."""
    names, steps, total = [], {}, 1
    for axis in pixels.get("DimensionOrder", "XYCZT")[2:]:
        steps[axis] = total
        total *= int(pixels.get(f"Size{axis}", "1"))
    step = steps.get("C", 1)
    shown = range(0, step * int(pixels.get("SizeC", "1")), step)  # their planes
    for data in pixels:
        uuid = next((element for element in data if element.tag.endswith("UUID")), None)
        first = sum(int(data.get(f"First{axis}", "0")) * steps[axis] for axis in steps)
        count = int(data.get("PlaneCount", "1" if "IFD" in data.attrib else str(total)))
        if uuid is not None and uuid.text != own and any(first <= plane < first + count for plane in shown):
            names.append(uuid.get("FileName", "unnamed"))
    return names


def _steps(element: ElementTree.Element) -> int:
    try:
        start, end, step = (float(element.get(*pair)) for pair in (("Start", "0"), ("End", "0"), ("Step", "1")))
        return int(abs((end - start) / step)) + 1
    except (ValueError, ZeroDivisionError, OverflowError):
        return MAX_PLANES + 1


def ome_spacing_m_yx(xml: str, image: int) -> tuple[float, float] | None:
    """Return the height and width of a pixel of one image in metres; ``None`` if they are unknown."""
    pixels = [element for element in ElementTree.fromstring(xml).iter() if element.tag.rpartition("}")[2] == "Pixels"]
    if image >= len(pixels):
        return None
    spacing = []
    for axis in "YX":
        unit = METRES.get(pixels[image].get(f"PhysicalSize{axis}Unit", "µm").lower())
        try:
            size = float(pixels[image].get(f"PhysicalSize{axis}", "nan"))
        except ValueError:
            return None
        if unit is None or not (math.isfinite(size) and size > 0):
            return None
        spacing.append(size * unit)
    return spacing[0], spacing[1]
