"""kill -9 of Ray's processes under a driver that lives on: a worker, a slot, a mailbox."""

import random
import subprocess
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

TITLES = {
    "worker": ("ray::RayTrainWorker",),
    "slot": ("ray::ResourceTrainable", "ray::TrialSlot"),  # while it has a call, and between two
    "mailbox": ("ray::Mailbox",),
}


def run(name: str, *, seed: int, kills: int = 10) -> dict[str, Any]:
    failures: list[str] = []
    rng, points = generator(name, seed), 0
    with tempfile.TemporaryDirectory(prefix=f"fault_{name}_") as folder:
        search = ToySearch(Path(folder), **SIZE, seed=seed)
        driver = search.start()
        with ended_afterwards(driver):
            try:
                for _ in range(kills):
                    kill_one(search, driver, TITLES[name], rng)
                require(driver.wait(900) == 0, f"the search ended with exit code {driver.returncode}: {search.said()}")
                check_ended(search)
                points = check_mlflow(search)
                losses = sum(row.attrs.get("losses", 0) for row in search.rows())
                # One that hits a process between two trials costs no trial anything.
                require(0 < losses <= kills, f"{losses} losses were counted of {kills} kills")
                require(outcome(search.rows()) == outcome(undisturbed(seed).rows()), "other decisions than undisturbed")
            except Failure as failure:
                failures.append(str(failure))
        losses = sum(row.attrs.get("losses", 0) for row in search.rows())
    return row(name, kills, failures, f"12 trials, {losses} losses counted, {points} metric points in MLflow once each")


def kill_one(search: ToySearch, driver: subprocess.Popen[str], titles: tuple[str, ...], rng: random.Random) -> None:
    wait_for(lambda: search.processes(titles), PROGRESS_S, f"a {titles[0]}", driver)
    before = search.progress()  # what the last victim had said is in by now
    wait_for(lambda: search.progress() > before, PROGRESS_S, "progress after a kill", driver)
    time.sleep(rng.uniform(0, 2))
    victims = search.processes(titles)
    require(victims and driver.poll() is None, f"no {titles[0]} runs any more: {search.said()[-500:]}")
    rng.choice(victims).kill()
