"""The log of a run under dynamic precision: what was seen, what was decided, and why."""

import dataclasses
import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from deepseek_hpf.dynamic.event_lines import plain
from deepseek_hpf.dynamic.line_file import LineFile, NoFile
from deepseek_hpf.dynamic.tensorboard_log import NoScalars, ScalarLog
from deepseek_hpf.files import StrPath
from deepseek_hpf.scheduling.events import Event
from deepseek_hpf.scheduling.telemetry import Overflow, Telemetry

logger = logging.getLogger(__name__)

BEGINNING = b'{"kind": "start"'


class EventLog:
    """Writes a run down: JSON lines, TensorBoard, the log of Python, and what the history takes.

    The file is only appended to. A run that goes on from a checkpoint begins with a line `start` at
    its first step, and what was written before for that step and later ones no longer counts
    (`read_events` drops it): after a kill the same log shows the run as if it had never stopped.

    A number that is not finite is written as the string `"NaN"`, `"Infinity"` or `"-Infinity"`, for
    JSON has no such numbers; what is None is left out.

    Args:
        path: The file; None writes none. Its folder is made if it is missing.
        log_dir: Folder of TensorBoard's files; None writes none.

    Raises:
        ConfigError: The file cannot be written or holds something else, or tensorboard is not
            installed.
        OSError: The folder for TensorBoard cannot be written.

    Example:
        >>> from deepseek_hpf.dynamic.event_log import EventLog
        >>> log = EventLog("events.jsonl")
        >>> log.start(
        ...     0,
        ...     model="net",
        ...     policy="mixed_float16",
        ...     controller="threshold",
        ...     blocks={"stem": ["stem/conv"]},
        ...     precision={"stem": "base"},
        ... )
        >>> log.scale(100, 512.0, "an overflow")
        >>> log.close()
        >>> log.recent()
        [{'kind': 'scale', 'step': 100, 'scale': 512.0, 'reason': 'an overflow'}]
        >>> print(open("events.jsonl").read().splitlines()[-1])
        {"kind": "scale", "step": 100, "scale": 512.0, "reason": "an overflow"}
    """

    def __init__(self, path: StrPath | None, log_dir: StrPath | None = None):
        self._scalars: ScalarLog | NoScalars = (
            NoScalars() if log_dir is None else ScalarLog(log_dir)
        )
        self._recent: list[dict[str, Any]] = []
        try:
            self._file: LineFile | NoFile = NoFile() if path is None else LineFile(path, BEGINNING)
        except BaseException:
            self._scalars.close()
            raise

    def start(
        self,
        step: int,
        *,
        model: str,
        policy: str,
        controller: str,
        blocks: Mapping[str, Sequence[str]],
        precision: Mapping[str, str],
        resumed: bool = False,
    ) -> None:
        """Begins a run, or goes on with it.

        Args:
            step: Number of the next step, from 0.
            model: Name of the model.
            policy: Name of the base policy.
            controller: Name of the controller.
            blocks: Name of a block to the paths of its layers, in the order of the model.
            precision: Name of a block to its level.
            resumed: Whether the run goes on from a checkpoint.
        """
        self._write(
            "start",
            step,
            model=model,
            policy=policy,
            controller=controller,
            blocks=blocks,
            precision=precision,
            resumed=True if resumed else None,
        )
        self._scalars.start(step)
        self._scalars.precision(step, precision)
        logger.info(
            "Step %d: %s %s under %s, %d block(s), controller %s.",
            *(step, model, "goes on" if resumed else "starts", policy, len(blocks), controller),
        )

    def window(self, telemetry: Telemetry, gradient_norm: float | None = None) -> None:
        """Writes a read-out; its overflows are left to `overflow`.

        Args:
            telemetry: The read-out.
            gradient_norm: L2 norm of the gradient of the whole model, mean over the steps.
        """
        figures = {
            "loss": telemetry.loss,
            "scale": telemetry.scale,
            "gradient_norm": gradient_norm,
            "skipped": telemetry.skipped,
            "step_seconds": telemetry.step_seconds,
        }
        self._write(
            "window", telemetry.step, steps=telemetry.steps, epoch=telemetry.epoch, **figures
        )
        self._scalars.scalars(telemetry.step, figures)

    def event(self, event: Event, precision: Mapping[str, str]) -> None:
        """Writes a decision of the controller.

        Args:
            event: The decision.
            precision: Name of a block to the level that holds from its step on.
        """
        values = dataclasses.asdict(event)
        self._note(values.pop("kind"), values.pop("step"), **values, precision=precision)
        self._scalars.precision(event.step, precision)
        about = event.kind if event.block is None else f"{event.kind} {event.block}"
        self._say(event.step, f"{about}: {event.reason}")

    def overflow(self, overflow: Overflow, reason: str) -> None:
        """Writes a skipped step.

        Args:
            overflow: The step, and what was found to have caused it.
            reason: In words.
        """
        values = {k: v for k, v in dataclasses.asdict(overflow).items() if v != ()}
        self._note("overflow", values.pop("step"), **values, reason=reason)
        self._say(overflow.step, f"skipped: {reason}")

    def scale(self, step: int, scale: float, reason: str) -> None:
        """Writes a change of the loss scale that the optimizer did not make by itself.

        Args:
            step: Number of the first step that it holds for.
            scale: The new loss scale.
            reason: Why, in words.
        """
        self._note("scale", step, scale=scale, reason=reason)
        self._say(step, f"loss scale {scale:g}: {reason}")

    def recent(self) -> list[dict[str, Any]]:
        """Takes the decisions, skipped steps and changes of the scale since the last call.

        Returns:
            What the lines of the file say, in their order.
        """
        taken, self._recent = self._recent, []
        return taken

    def close(self) -> None:
        """Closes the files; what comes after that goes to the log of Python alone."""
        self._file.close()
        self._scalars.close()

    def _note(self, kind: str, step: int, **values: Any) -> None:
        """Writes a line that the history takes as well."""
        self._recent.append(self._write(kind, step, **values))

    def _write(self, kind: str, step: int, **values: Any) -> dict[str, Any]:
        line = plain({"kind": kind, "step": step, **values})
        # Half a surrogate pair, which UTF-8 does not have, becomes a question mark.
        text = json.dumps(line, ensure_ascii=False).encode("utf-8", "replace")
        self._file.write(text)
        return line

    def _say(self, step: int, text: str) -> None:
        self._scalars.text(step, text)
        logger.info("Step %d: %s.", step, text)
