"""Addresses of other machines, which are recognized so that they are not taken for missing files."""

from __future__ import annotations

import os
import re

from tnet.errors import DataError, TnetError

# Two letters at least: C:/ is a drive. pathlib makes one slash of two.
_ADDRESS = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+):/+(?P<rest>.*)", re.DOTALL)
_GDAL = re.compile(r"/vsi(curl|s3|gs|az|adls|oss|swift|hdfs|webhdfs)(_streaming)?/")


def check_local(path: str | os.PathLike[str], error: type[TnetError] = DataError) -> None:
    """Raise ``error`` for an address such as ``s3://bucket/scene.tif``, unless it names a local file after all."""
    text = os.fsdecode(path)
    match = _ADDRESS.match(text)
    if not (match or _GDAL.match(text)) or os.path.lexists(text):
        return
    address = f"{match['scheme']}://{match['rest']}" if match else text
    if address.lower().startswith("file:"):
        raise error(f"{address} is a URL, but a path is expected; leave out file://")
    remedy = "copy it to a local disk, and give its path there"
    raise error(f"{address} is a remote address, but only local files are read and written; {remedy}")
