"""The events of each epoch, in the history that `fit` returns."""

from collections.abc import Mapping
from typing import Any

EVENTS, SWITCHES = "precision_events", "precision_switches"

Lines = list[dict[str, Any]]


class EventHistory:
    """Collects events for the history, where an epoch has one entry."""

    def __init__(self) -> None:
        self._lines: Lines = []
        self._restored: tuple[int, int] = (0, 0)  # lines and switches when a state was set

    def end_epoch(
        self, model: Any, logs: dict[str, Any] | None, lines: Lines, switches: int
    ) -> None:
        """Enters the events of the epoch.

        Args:
            model: The model in `fit`.
            logs: The logs of the epoch; what other callbacks and the history take.
            lines: The events since they were taken last.
            switches: Plans switched to so far.
        """
        if logs is not None:
            logs[SWITCHES] = switches
        history = getattr(model, "history", None)
        self._lines += lines
        if history is not None:
            self._enter_left_out(history)
            history.history.setdefault(EVENTS, []).append(self._lines)
        self._lines, self._restored = [], (0, 0)

    def get_state(self, lines: Lines, switches: int) -> dict[str, Any]:
        """Takes in events, and returns what has not been entered yet, as JSON values.

        Args:
            lines: The events since they were taken last.
            switches: Plans switched to so far.
        """
        self._lines += lines
        return {"lines": list(self._lines), "switches": switches}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes on from what `get_state` returned."""
        self._lines = list(state["lines"])
        self._restored = (len(self._lines), state["switches"])

    def _enter_left_out(self, history: Any) -> None:
        """Enters an epoch that was backed up at its end before it was entered."""
        count, switches = self._restored
        entries = history.history.setdefault(EVENTS, [])
        if len(entries) < len(history.epoch):
            entries.append(self._lines[:count])
            self._lines = self._lines[count:]
        counts = history.history.setdefault(SWITCHES, [])
        if len(counts) < len(history.epoch):
            counts.append(switches)
