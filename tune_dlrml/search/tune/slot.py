"""A Tune trial actor without a training process of its own: it passes trials to a worker group that outlives them."""

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tune_dlrml.errors import GroupDiedError
from tune_dlrml.records import State
from tune_dlrml.system.imports import importing
from tune_dlrml.system.timings import mark
from tune_dlrml.training.group_spec import GroupSpec

with importing():  # a slot's process begins with this module, and the group waits for it
    from ray import tune

    from tune_dlrml.search.tune.group import WorkerGroup, lost
    from tune_dlrml.search.tune.keeper import LeasedGroup

HEARTBEAT_S = 2.0
"""A step without news returns after this; a longer one would delay every decision of Tune."""


class TrialSlot(tune.Trainable):  # type: ignore[misc]  # mypy skips ray, see pyproject.toml
    """Trains one trial at a time in its worker group; Tune reuses the slot, and so the group, for the next.

    A result is `{"number", "reports", "outcome", "done"}`: the reports that came in since the last one, of which only
    the last can be at a rung, and how the trial ended, once it has. An empty one is a heartbeat.
    """

    def setup(self, config: dict[str, Any], group: GroupSpec, keeper: Any = None) -> None:
        """Start the worker group with the first trial, or lease one of a keeper."""
        mark(Path(group.trials).parent, "slot")
        self._group_spec, self._keeper = group, keeper
        self._group: WorkerGroup | LeasedGroup | None = None
        self._number, self._index, self._at_rung = -1, -1, False
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Drop the present trial, if it still runs, and pass the next to the group."""
        self._begin(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Wait for news of the trial, at most `HEARTBEAT_S`."""
        try:
            news = self._news()
        except GroupDiedError as error:
            news = [{"outcome": asdict(lost(self._number, error))}]
        reports = [item["report"] for item in news if "report" in item]
        outcome = next((item["outcome"] for item in news if "outcome" in item), None)
        if outcome is not None and outcome["state"] == State.FAILED:
            self._leave()
        self._at_rung = bool(reports) and reports[-1]["rung"]
        return {"number": self._number, "reports": reports, "outcome": outcome, "done": outcome is not None}

    def _news(self) -> list[dict[str, Any]]:
        group = self._group
        assert group is not None
        if self._at_rung:
            group.call("release", self._index)
        was_alive = group.alive  # checked first: what a group sends before it ends is still in the mailbox
        news: list[dict[str, Any]] = group.call("collect", self._index, HEARTBEAT_S)
        if not news and not was_alive:
            news = [{"outcome": asdict(group.how_it_was_lost(self._number))}]
        return news

    def cleanup(self) -> None:
        """Let the workers leave."""
        self._leave()

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
        """Nothing: what counts is in the study and in the trial's own folder."""
        return {}

    def load_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
        """Nothing to load, see `save_checkpoint`."""

    def _begin(self, config: dict[str, Any]) -> None:
        """Pass a trial to the group, or to a new one where the last has reached its limit or died."""
        order = {"spec": config["spec"], "handed_over_s": time.time()}
        self._number, self._at_rung = int(config["spec"]["number"]), False
        limit = self._group_spec.resources.trials_per_group
        if self._group is not None and (self._group.trials == limit or not self._group.alive):
            self._leave()
        try:
            self._index = self._put(order)
        except GroupDiedError:
            self._leave()
            self._index = self._put(order)

    def _put(self, order: dict[str, Any]) -> int:
        if self._group is None:
            self._group = self._new_group()
        index: int = self._group.call("put", order)
        self._group.trials += 1
        return index

    def _new_group(self) -> WorkerGroup | LeasedGroup:
        if self._keeper is not None:
            try:
                return LeasedGroup(self._group_spec, self._keeper)
            except GroupDiedError:
                self._keeper = None  # a search does without
        return WorkerGroup(self._group_spec)

    def _leave(self) -> None:
        if self._group is not None:
            self._group.close()
            self._group = None
