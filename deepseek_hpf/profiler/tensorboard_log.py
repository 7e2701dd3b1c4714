"""A profile in TensorBoard: scalars and histograms through TensorBoard's own event writer."""

import os
import time
from collections.abc import Iterator
from typing import Any

from deepseek_hpf.extras import import_extra
from deepseek_hpf.profiler.findings import RangeRow
from deepseek_hpf.profiler.report import ProfileReport


def write_events(report: ProfileReport, log_dir: str | os.PathLike[str], step: int = 0) -> None:
    """Writes a profile for TensorBoard; needs no TensorFlow.

    Scalars are the numbers of conflicts and casts, the share of arithmetic in each dtype, and for
    each range its largest magnitude and what a cast to each format would lose. Histograms are of
    log2 magnitudes.

    Args:
        report: The profile.
        log_dir: Folder of the event files; it is made.
        step: The training step that the profile is of.

    Raises:
        ConfigError: The package tensorboard is not installed.
        OSError: The folder cannot be written.
    """
    writer_module = import_extra("tensorboard.summary.writer.event_file_writer", "tensorboard")
    events = import_extra("tensorboard.compat.proto.event_pb2", "tensorboard")
    summaries = import_extra("tensorboard.compat.proto.summary_pb2", "tensorboard")
    os.makedirs(log_dir, exist_ok=True)
    values = [
        summaries.Summary.Value(tag=tag, simple_value=value) for tag, value in _scalars(report)
    ]
    values += [
        summaries.Summary.Value(tag=_tag(row, "log2_magnitude"), histo=_histogram(summaries, row))
        for row in report.ranges
        if any(row.histogram)
    ]
    writer = writer_module.EventFileWriter(os.fspath(log_dir))
    try:
        summary = summaries.Summary(value=values)
        writer.add_event(events.Event(wall_time=time.time(), step=step, summary=summary))
        writer.flush()
    finally:
        writer.close()


def _scalars(report: ProfileReport) -> Iterator[tuple[str, float]]:
    errors = sum(conflict.severity == "error" for conflict in report.conflicts)
    yield "precision/conflicts_at_risk", errors
    yield "precision/conflicts_wasteful", len(report.conflicts) - errors
    yield "precision/non_finite", float(report.nonfinite is not None)
    if report.census.operations or report.census.casts:
        yield "precision/casts", report.census.cast_count
        yield "precision/cast_bytes", sum(cast.bytes for cast in report.census.casts)
    for dtype, share in report.census.arithmetic_shares().items():
        yield f"precision/arithmetic/{dtype}", share
    for row in report.ranges:
        if row.largest is not None:
            yield _tag(row, "largest"), row.largest
        for entry in row.what_if:
            yield _tag(row, f"{entry.dtype}_overflow"), entry.overflow
            yield _tag(row, f"{entry.dtype}_underflow"), entry.underflow
            if entry.noise_db is not None:
                yield _tag(row, f"{entry.dtype}_noise_db"), entry.noise_db


def _tag(row: RangeRow, figure: str) -> str:
    return "/".join(filter(None, ("ranges", row.path, row.kind, row.name, figure)))


def _histogram(summaries: Any, row: RangeRow) -> Any:
    """Buckets end at `bucket_limit`: bin i of the row is [first + i, first + i + 1)."""
    exponents = [row.first_exponent + index for index in range(len(row.histogram))]
    filled = [exponent for exponent, count in zip(exponents, row.histogram, strict=True) if count]
    pairs = list(zip(exponents, row.histogram, strict=True))
    return summaries.HistogramProto(
        min=filled[0],
        max=filled[-1] + 1,
        num=sum(row.histogram),
        sum=sum((exponent + 0.5) * count for exponent, count in pairs),
        sum_squares=sum((exponent + 0.5) ** 2 * count for exponent, count in pairs),
        bucket_limit=[float(exponents[0]), *(float(exponent + 1) for exponent in exponents)],
        bucket=[0.0, *map(float, row.histogram)],
    )
