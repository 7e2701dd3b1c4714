"""Sees that steps were skipped, and finds out why."""

import keras

from deepseek_hpf.dynamic.attribution import attribute
from deepseek_hpf.dynamic.kept_batches import KeptBatches
from deepseek_hpf.dynamic.reading import Reading
from deepseek_hpf.dynamic.skipped_step import is_looked_into, scale_before
from deepseek_hpf.scheduling.telemetry import Overflow


class SkipWatch:
    """Compares the count of skipped steps with the last one, and looks into a step that is new.

    Args:
        model: The model.
        reading: Reads it.
    """

    def __init__(self, model: keras.Model, reading: Reading):
        self._model = model
        self._reading = reading
        self._kept = KeptBatches(model)
        self.seen = 0

    def before_step(self) -> None:
        """Has the batches of the coming execution kept."""
        self._kept.install()

    def new(self) -> int:
        """Steps skipped since the last call; waits for the device."""
        total = self._reading.skipped()
        seen, self.seen = self.seen, total
        return max(total - seen, 0)

    def look_into(self, step: int, ran: int) -> tuple[Overflow, float | None] | None:
        """Finds out why a step of the last execution was skipped.

        Args:
            step: Steps trained so far.
            ran: Steps of the last execution.

        Returns:
            The skipped step, and the loss scale now; None where its batch is not at hand, or
            enough of its like have been looked into.
        """
        skips = self._reading.skips()
        batches = self._kept.taken()[-ran:]
        if skips.in_a_row:  # the last one was skipped, and nothing has happened since
            batches = batches[-1:]
        elif ran == 1:
            return None  # it was an earlier one
        if not batches or not is_looked_into(skips.in_a_row):
            return None
        first = step - len(batches)
        scale = scale_before(skips, self._reading.optimizer.scale_rules)
        overflow = Overflow(step=first, cause="unknown", scale=scale)
        for offset, batch in enumerate(batches):
            overflow = attribute(self._model, batch, step=first + offset, scale=scale)
            if overflow.cause != "unknown":
                break
        return overflow, skips.scale
