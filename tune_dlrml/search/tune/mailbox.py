"""The mailbox between a slot and its worker group, an actor of its own."""

import asyncio
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from tune_dlrml.records import Answer

GATHER_S = 0.25
"""Tune uses 20 ms of a CPU per result, beside workers that may train a small model's step in 80."""


class Mailbox:
    """Passes orders to the workers by index and reports back; at a rung the workers wait for the verdict."""

    def __init__(self) -> None:
        self._orders: list[dict[str, Any] | None] = []
        self._dropped: set[int] = set()
        self._released: dict[int, int] = defaultdict(int)
        self._rungs: dict[int, int] = defaultdict(int)
        self._news: dict[int, list[dict[str, Any]]] = defaultdict(list)
        self._handed_out: dict[int, int] = defaultdict(lambda: -1)
        self._acknowledged: dict[int, int] = defaultdict(lambda: -1)
        self._changed = asyncio.Condition()

    async def put(self, order: dict[str, Any] | None) -> int:
        """Queue a trial and drop all earlier ones; None asks the workers to leave. Returns the order's index."""
        async with self._changed:
            self._dropped.update(range(len(self._orders)))
            self._orders.append(order)
            self._changed.notify_all()
        return len(self._orders) - 1

    async def order(self, index: int) -> dict[str, Any] | None:
        """Wait for the order of that index."""
        async with self._changed:
            await self._changed.wait_for(lambda: len(self._orders) > index)
        return self._orders[index]

    async def send(self, index: int, report: dict[str, Any], rung: bool) -> Answer:
        """Receive a report; at a rung, wait for the verdict. Returns whether to continue, and what is recorded."""
        async with self._changed:
            if index not in self._dropped:
                self._news[index].append({"report": report})
                self._changed.notify_all()
            if rung:
                self._rungs[index] += 1
                mine = self._rungs[index]
                await self._changed.wait_for(lambda: self._released[index] >= mine or index in self._dropped)
        return Answer(index not in self._dropped, self._acknowledged[index])

    async def finish(self, index: int, outcome: dict[str, Any]) -> None:
        """Receive the outcome of a trial."""
        async with self._changed:
            self._news[index].append({"outcome": outcome})
            self._changed.notify_all()

    async def release(self, index: int) -> None:
        """Let a trial continue after the rung at which it waits."""
        async with self._changed:
            self._released[index] = self._rungs[index]
            self._changed.notify_all()

    async def collect(self, index: int, timeout_s: float) -> list[dict[str, Any]]:
        """Reports and outcome of a trial since the last call; waits for some up to `timeout_s`.

        Reports for which no worker waits are gathered for `GATHER_S`, until one comes at a rung or the trial ends. A
        call acknowledges what the previous call returned, since Tune lets a slot continue only once its result is
        processed.
        """
        async with self._changed:
            self._acknowledged[index] = self._handed_out[index]
            if not await self._comes(lambda: bool(self._news[index]), timeout_s):
                return []
            await self._comes(lambda: self._waits(index), GATHER_S)
            news = self._news.pop(index)
            steps = [item["report"]["step"] for item in news if "report" in item]
            self._handed_out[index] = max([self._handed_out[index], *steps])
            return news

    def _waits(self, index: int) -> bool:
        """Whether the workers wait until the news is processed: at a rung, or at the end of the trial."""
        return self._rungs[index] > self._released[index] or any("outcome" in item for item in self._news[index])

    async def _comes(self, what: Callable[[], bool], within_s: float) -> bool:
        """Whether a condition becomes true in time; the lock is held before and after."""
        try:
            await asyncio.wait_for(self._changed.wait_for(what), within_s)
        except TimeoutError:
            return False
        return True
