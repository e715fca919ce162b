"""kill -9 of the driver at random moments of one search, started again by the same command each time."""

import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from faults.toy_search import (
    PROGRESS_S,
    SIZE,
    Failure,
    ToySearch,
    check_ended,
    check_mlflow,
    ended_afterwards,
    generator,
    outcome,
    require,
    row,
    undisturbed,
    wait_for,
)
from tune_dlrml.records import State
from tune_dlrml.training.checkpoint import newest_checkpoint

INTERVAL = 20
"""Steps from one checkpoint to the next."""


def run(*, seed: int, kills: int = 30) -> dict[str, Any]:
    """Kill and resume, then compare with the search of the same seed that nobody killed."""
    failures: list[str] = []
    points = 0
    with tempfile.TemporaryDirectory(prefix="fault_driver_") as name:
        search = ToySearch(Path(name), **SIZE, seed=seed)
        rng = generator("driver", seed)
        waits = []
        for kill in range(kills):
            waits.append(kill_once(search, rng, failures, booting=rng.random() < 1 / 3))
            told = "while it booted" if waits[-1] is None else f"{waits[-1]:.0f} s after the start"
            print(f"driver: kill {kill + 1} of {kills} {told}; so far {failures or 'all well'}", file=sys.stderr)
        try:
            search.run()
            check_ended(search)
            points = check_mlflow(search)
            _compare(search, undisturbed(seed))
        except Failure as failure:
            failures.append(str(failure))
    longest = max((wait for wait in waits if wait is not None), default=0.0)
    detail = f"12 trials, {points} metric points in MLflow once each; longest wait for progress {longest:.0f} s"
    return row("driver", kills, failures, detail)


def kill_once(search: ToySearch, rng: random.Random, failures: list[str], *, booting: bool) -> float | None:
    """Start the search and kill its driver, while it boots or while it trains; seconds to the first new report."""
    before, began, waited = search.progress(), time.monotonic(), None
    lost = lost_steps(search)
    driver = search.start()
    with ended_afterwards(driver):
        try:
            require(lost <= INTERVAL, f"{lost} steps were lost, but a checkpoint is made every {INTERVAL}")
            if booting:
                time.sleep(rng.uniform(0, 20))
            else:
                wait_for(lambda: search.progress() > before, PROGRESS_S, "progress after a restart", driver)
                waited = time.monotonic() - began
                time.sleep(rng.uniform(0, 2))
            require(driver.poll() is None, f"the search ended before it could be killed: {search.said()[-500:]}")
        except Failure as failure:
            failures.append(str(failure))
        driver.kill()
        driver.wait()
    return waited


def lost_steps(search: ToySearch) -> int:
    """Most steps of a trial that are in its event log and not in its newest complete checkpoint."""
    lost = 0
    for number in range(search.trials):
        steps = [report["step"] for report in search.reports(number)]
        ended = any(event["kind"] == "end" for event in search.events(number))
        if steps and not ended:
            checkpoint = newest_checkpoint(search.place / "trials" / str(number))
            lost = max(lost, steps[-1] - (0 if checkpoint is None else checkpoint.step))
    return lost


def _compare(killed: ToySearch, undisturbed: ToySearch) -> None:
    ours, theirs = outcome(killed.rows()), outcome(undisturbed.rows())
    for mine, other in zip(ours, theirs, strict=True):
        require(mine == other, f"the killed search decided {mine}, the undisturbed one {other}")
    for trial in killed.rows():
        if trial.state is State.COMPLETE:
            same = killed.weights(trial.number) == undisturbed.weights(trial.number)
            require(same, f"the weights of trial {trial.number} differ from those of one that was not killed")
