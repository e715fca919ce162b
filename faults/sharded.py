"""kill -9 of a rank of a sharded group: the search decides as one whose ranks each have the whole model."""

import tempfile
import time
from pathlib import Path
from typing import Any

from faults.processes import kill_one
from faults.toy_search import Failure, ToySearch, check_ended, ended_afterwards, generator, outcome, require, row

TIMES = {"steps_per_second", "reference_tokens", "reference_tokens_saved", "activation_gib"}
"""Metrics that tell of the group and not of the trial."""
SIZE: dict[str, Any] = {"trials": 4, "steps": 120, "max_failures": 30}


def run(*, seed: int, kills: int = 2) -> dict[str, Any]:
    failures: list[str] = []
    rng, seconds, losses = generator("sharded", seed), dict[bool, float](), 0
    with tempfile.TemporaryDirectory(prefix="fault_sharded_") as folder:
        searches = {
            fsdp: ToySearch(Path(folder, str(fsdp)), **SIZE, seed=seed, resources={"workers": 2, "fsdp": fsdp})
            for fsdp in (False, True)
        }
        try:
            for fsdp, search in searches.items():
                began, driver = time.monotonic(), search.start()
                with ended_afterwards(driver):
                    for _ in range(kills if fsdp else 0):
                        kill_one(search, driver, ("ray::RayTrainWorker",), rng)
                    require(driver.wait(900) == 0, f"exit code {driver.returncode}: {search.said()[-3000:]}")
                seconds[fsdp] = time.monotonic() - began
            check_ended(searches[True])
            losses = sum(each.attrs.get("losses", 0) for each in searches[True].rows())
            require(0 < losses <= kills, f"{losses} losses were counted of {kills} kills")
            _compare(*searches.values())
        except Failure as failure:
            failures.append(str(failure))
    took = ", ".join(f"{'sharded' if fsdp else 'whole'} {value:.0f} s" for fsdp, value in seconds.items())
    return row("sharded", kills, failures, f"4 trials of 2 ranks, {losses} losses counted, {took}")


def _compare(whole: ToySearch, sharded: ToySearch) -> None:
    require(outcome(sharded.rows()) == outcome(whole.rows()), "other decisions than with whole models")
    for number in range(whole.trials):
        ours, theirs = (
            [{k: v for k, v in report["metrics"].items() if k not in TIMES} for report in search.reports(number)]
            for search in (sharded, whole)
        )
        require(ours == theirs, f"trial {number} has other metrics than with a whole model")
