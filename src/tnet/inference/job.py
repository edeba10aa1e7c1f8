"""Prediction of very many images into a folder, in parts that are never lost or written twice.

Part ``n`` holds the rows ``n * part_rows`` onwards of the list of images, so parts depend on the list alone: not on
workers, shards, or what was finished before. A part that exists is complete, and a resumed job writes the missing ones.
"""

from __future__ import annotations

import hashlib
import json
import time
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from tnet.errors import ConfigError, OutputError, PartWarning
from tnet.files import atomic_path, cannot_write, check_unclaimed, claimed, make_folder, remove_leftovers, write_text
from tnet.inference.predictor import iter_predictions
from tnet.inference.records import Prediction, Unreadable
from tnet.inference.write import row_of
from tnet.models.base import Model

JOB_NAME, REPORT_NAME, PARTS = "job.json", "report.json", "parts"
_CLAIMS = "claims"
_SCHEMA = pa.schema(
    [
        ("row", pa.int64()),  # in the list of images, from 0
        ("path", pa.string()),
        ("label", pa.string()),
        ("probability", pa.float64()),
        ("top5", pa.string()),  # JSON, as in CSV
        ("regions", pa.string()),  # JSON
        ("error", pa.string()),
        ("error_kind", pa.string()),
    ]
)


@dataclass(frozen=True)
class JobReport:
    """What one call did, and what the folder holds.

    Attributes:
        images: images of the job.
        predicted: images with a prediction, in all parts written so far.
        failed: images with an error instead.
        missing: images of parts that are not written yet, by this or another shard.
        errors: number of failed images by kind: ``missing``, ``unreadable``, ``too small`` or ``memory``.
        new: images of the parts that this call wrote.
        seconds: time that this call took.
        images_per_second: ``new`` over ``seconds``.
    """

    images: int
    predicted: int
    failed: int
    missing: int
    errors: dict[str, int]
    new: int
    seconds: float
    images_per_second: float


def predict_into(
    out: str | Path,
    model: Model,
    images: Sequence[Path],
    *,
    model_hash: str,
    settings: Mapping[str, Any],
    part_rows: int = 500,
    shard: tuple[int, int] = (1, 1),
    retry_failed: bool = False,
    progress: bool = True,
    engine: Callable[..., Iterator[Prediction | Unreadable]] = iter_predictions,
    **options: Any,
) -> JobReport:
    """Predict images into the Parquet files ``OUT/parts/*.parquet``; what is there already is not repeated.

    An image that cannot be read becomes a row with its error. ``OUT/job.json`` holds what the job is, and
    ``OUT/report.json`` the :class:`JobReport` once all parts are written.

    Args:
        out: folder of the job; new, empty, or of the same job.
        model: the model.
        images: paths, which need not exist; their order defines the rows.
        model_hash: identity of the model, from :func:`tnet.models.io.model_digest`.
        settings: what else the predictions depend on, as plain values.
        part_rows: images per part.
        shard: this call writes every ``n``-th part, ``i`` being its number, from 1.
        retry_failed: predict the failed images of written parts again, and replace those parts.
        progress: show progress.
        engine: what predicts: called as ``iter_predictions``, which it must equal.
        options: as of :func:`tnet.inference.predictor.iter_predictions`.

    Raises:
        OutputError: the folder holds something else, or a job of another model, list or settings; another process works
            on this shard; or it cannot be written.
        ConfigError: shard numbers are out of range.
    """
    out, start = Path(out), time.monotonic()
    if not 1 <= shard[0] <= shard[1] or part_rows < 1:
        numbers = f"shard {shard[0]}/{shard[1]} with {part_rows} rows per part"
        raise ConfigError(f"{numbers} is out of range; give 1/4 to 4/4 for four shards, and at least 1 row")
    text = _job(images, model_hash, settings, part_rows)
    with _claimed(out, text, shard):
        count = -(-len(images) // part_rows)
        mine = range(shard[0] - 1, count, shard[1])
        written = {part for part in mine if _is_whole(out, part, min(part_rows, len(images) - part * part_rows))}
        todo: dict[int, Sequence[int]] = {p: _rows(p, part_rows, len(images)) for p in mine if p not in written}
        if retry_failed:
            todo |= _failed_rows(out, sorted(written))

        def predict(rows: list[int], parts: list[int]) -> Iterator[Prediction | Unreadable]:
            chosen = [images[row] for row in rows]
            return engine(model, chosen, **options, skip_unreadable=True, parts=parts, progress=progress)

        try:
            new = _write_parts(out, todo, written, predict)
        except KeyboardInterrupt as error:
            done = sum(_part_path(out, part).exists() for part in mine)
            error.add_note(f"{done} of {len(mine)} parts are in {out}; the same command goes on")
            raise
        report = _report(out, len(images), count, new, time.monotonic() - start)
        if not report.missing:
            write_text(out / REPORT_NAME, json.dumps(asdict(report), indent=2) + "\n")
    return report


def _job(images: Sequence[Path], model_hash: str, settings: Mapping[str, Any], part_rows: int) -> str:
    """Return the text of ``job.json``: what the rows of the parts depend on."""
    digest = hashlib.sha256()
    for path in images:
        digest.update(str(path).encode("utf-8", "surrogateescape") + b"\0")
    job = {"images": len(images), "list": digest.hexdigest(), "model": model_hash, "part_rows": part_rows, **settings}
    return json.dumps(job, indent=2) + "\n"


@contextmanager
def _claimed(out: Path, text: str, shard: tuple[int, int]) -> Iterator[None]:
    """Check that the folder is of this job, and claim the shard in it."""
    path = out / JOB_NAME
    if out.is_dir() and not path.exists() and any(out.iterdir()):
        raise OutputError(f"{out} is not empty and holds no job; give another --out")
    for folder in out.glob(f"{_CLAIMS}/*"):
        if folder.name.rpartition("-")[2] != str(shard[1]):
            check_unclaimed(folder)  # its parts overlap with ours
    with claimed(make_folder(out / _CLAIMS) / f"{shard[0]}-of-{shard[1]}"):
        if path.exists():
            _check_same(path, text)
        else:
            write_text(path, text)
        remove_leftovers(make_folder(out / PARTS))
        yield


def _check_same(path: Path, text: str) -> None:
    try:
        found, wanted = json.loads(path.read_text(encoding="utf-8")), json.loads(text)
        keys = [key for key in {**found, **wanted} if found.get(key) != wanted.get(key)]
    except (OSError, ValueError, TypeError, AttributeError):
        raise OutputError(f"{path} is damaged, so that the job cannot go on; give another --out") from None
    if keys:
        changes = ", ".join(f"{key} {_short(found.get(key))} -> {_short(wanted.get(key))}" for key in keys)
        raise OutputError(f"{path.parent} holds another job ({changes}); give another --out")


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 24 else f"{text[:12]}..."


def _part_path(out: Path, part: int) -> Path:
    return out / PARTS / f"part-{part:06d}.parquet"


def _rows(part: int, part_rows: int, images: int) -> range:
    return range(part * part_rows, min((part + 1) * part_rows, images))


def _failed_rows(out: Path, parts: Sequence[int]) -> dict[int, list[int]]:
    """Return the rows of failed images by part."""
    failed = {}
    for part in parts:
        table = pyarrow.parquet.read_table(_part_path(out, part), columns=["row", "error_kind"])
        if rows := [row["row"] for row in table.to_pylist() if row["error_kind"] is not None]:
            failed[part] = rows
    return failed


def _is_whole(out: Path, part: int, rows: int) -> bool:
    """Return whether a part is there with all its rows; a damaged one, as after a copy that broke off, is not."""
    path = _part_path(out, part)
    try:
        if pyarrow.parquet.read_metadata(path).num_rows == rows:
            return True
    except FileNotFoundError:
        return False
    except (OSError, pa.ArrowException):
        pass
    warnings.warn(f"{path} is damaged and is written again", PartWarning, stacklevel=5)
    return False


def _write_parts(
    out: Path,
    todo: Mapping[int, Sequence[int]],
    written: Collection[int],
    predict: Callable[[list[int], list[int]], Iterator[Prediction | Unreadable]],
) -> int:
    """Predict rows of parts, part after part, and return their number; a part that is written keeps its other rows."""
    if not todo:
        return 0
    results = predict([row for rows in todo.values() for row in rows], [len(rows) for rows in todo.values()])
    for part, rows in todo.items():
        old = pyarrow.parquet.read_table(_part_path(out, part)).to_pylist() if part in written else ()
        table = {row["row"]: row for row in old}
        for row, item in zip(rows, islice(results, len(rows)), strict=True):
            table[row] = {"row": row, **row_of(item)}
        _write_part(out, part, list(table.values()))
    next(results, None)  # ends the progress bar
    return sum(map(len, todo.values()))


def _write_part(out: Path, part: int, rows: list[dict[str, Any]]) -> None:
    path = _part_path(out, part)
    with atomic_path(path) as temporary:
        try:
            pyarrow.parquet.write_table(pa.Table.from_pylist(rows, _SCHEMA), temporary)
        except OSError as error:  # pyarrow's have no text of their own
            raise cannot_write(path, error) from None


def _report(out: Path, images: int, parts: int, new: int, seconds: float) -> JobReport:
    """Count the rows of all parts."""
    written, errors = 0, Counter[str]()
    for part in range(parts):
        if (path := _part_path(out, part)).exists():
            kinds = pyarrow.parquet.read_table(path, columns=["error_kind"])["error_kind"]
            written += len(kinds)
            if kinds.null_count < len(kinds):
                errors.update(kind for kind in kinds.to_pylist() if kind is not None)
    failed = errors.total()
    rate = round(new / seconds, 3) if seconds else 0.0
    return JobReport(
        images, written - failed, failed, images - written, dict(errors.most_common()), new, round(seconds, 3), rate
    )
