"""The course of a run in TensorBoard: scalars of each window, and every decision as a text."""

import logging
import os
import time
from collections.abc import Mapping
from typing import Any

from deepseek_hpf.extras import import_extra

logger = logging.getLogger(__name__)

# Where a level stands on the axis of its block's curve.
LEVELS = {"base": 0.0, "critical": 1.0, "float32": 2.0}
PREFIX = "dynamic"


class ScalarLog:
    """Scalars and texts through TensorBoard's own event writer; needs no TensorFlow.

    Args:
        log_dir: Folder of the event files; it is made.

    Raises:
        ConfigError: The package tensorboard is not installed.
        OSError: The folder cannot be written.
    """

    def __init__(self, log_dir: str | os.PathLike[str]):
        proto = "tensorboard.compat.proto"
        writer = import_extra("tensorboard.summary.writer.event_file_writer", "tensorboard")
        self._events = import_extra(f"{proto}.event_pb2", "tensorboard")
        self._summaries = import_extra(f"{proto}.summary_pb2", "tensorboard")
        self._tensors = import_extra(f"{proto}.tensor_pb2", "tensorboard")
        os.makedirs(log_dir, exist_ok=True)
        self._writer: Any = writer.EventFileWriter(os.fspath(log_dir))

    def start(self, step: int) -> None:
        """Begins at a step: TensorBoard forgets what an earlier run wrote from there on."""
        begun = self._events.SessionLog(status=self._events.SessionLog.START)
        self._add(self._events.Event(wall_time=time.time(), step=step, session_log=begun))

    def scalars(self, step: int, values: Mapping[str, float | None]) -> None:
        """Writes curves' points.

        Args:
            step: The step that they stand at.
            values: Name of a curve to its value; what is None has no point.
        """
        self._write(
            step,
            [
                self._summaries.Summary.Value(tag=f"{PREFIX}/{name}", simple_value=value)
                for name, value in values.items()
                if value is not None
            ],
        )

    def precision(self, step: int, precision: Mapping[str, str]) -> None:
        """Writes the level of each block: 0 base, 1 critical layers in float32, 2 float32."""
        self.scalars(step, {f"precision/{name}": LEVELS.get(v) for name, v in precision.items()})

    def text(self, step: int, text: str) -> None:
        """Writes a decision as TensorBoard's text plugin shows it."""
        summaries, tensors = self._summaries, self._tensors
        data = summaries.SummaryMetadata.PluginData(plugin_name="text")
        value = summaries.Summary.Value(
            tag=f"{PREFIX}/events/text_summary",
            metadata=summaries.SummaryMetadata(plugin_data=data),
            tensor=tensors.TensorProto(
                dtype="DT_STRING", string_val=[text.encode("utf-8", "backslashreplace")]
            ),
        )
        self._write(step, [value])

    def close(self) -> None:
        """Closes the event file; what is written after that is dropped."""
        if self._writer is not None:
            writer, self._writer = self._writer, None
            writer.close()

    def _write(self, step: int, values: list[Any]) -> None:
        summary = self._summaries.Summary(value=values)
        self._add(self._events.Event(wall_time=time.time(), step=step, summary=summary))

    def _add(self, event: Any) -> None:
        if self._writer is None:
            return
        try:
            self._writer.add_event(event)
            self._writer.flush()
        except OSError as error:
            logger.warning("TensorBoard: no more is written: %s", error)
            self._writer = None


class NoScalars:
    """Takes what `ScalarLog` does and keeps nothing."""

    def start(self, step: int) -> None:
        """Does nothing."""

    def scalars(self, step: int, values: Mapping[str, float | None]) -> None:
        """Drops points."""

    def precision(self, step: int, precision: Mapping[str, str]) -> None:
        """Drops levels."""

    def text(self, step: int, text: str) -> None:
        """Drops a text."""

    def close(self) -> None:
        """Does nothing."""
