"""kill -9 of the raylet of a worker node, with the study in PostgreSQL; another node comes in its place."""

import os
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import psutil
from cluster.services import PROJECT, Cluster, lacking

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


def run(*, seed: int, kills: int = 10) -> dict[str, Any]:
    if lacking():
        return row("raylet", 0, [], f"not tried: PostgreSQL cannot run here, for want of {lacking()}")
    failures: list[str] = []
    points = 0
    with tempfile.TemporaryDirectory(prefix="fault_raylet_") as name:
        folder = Path(name)
        subprocess.run([PROJECT / "docker" / "make-secrets.sh", folder / "secrets"], check=True)
        cluster = Cluster(folder / "secrets")
        try:
            for service in ("postgres", "ray-head", "ray-worker"):
                cluster.start_one(service)
            search = ToySearch(folder / "search", **SIZE, seed=seed)
            search.environment = _environment(cluster)
            _kill_all(search, cluster, generator("raylet", seed), kills)
            with patch.dict(os.environ, PGPASSFILE=search.environment["PGPASSFILE"]):  # to read the study here
                check_ended(search)
                points = check_mlflow(search)
                ours = outcome(search.rows())
            require(ours == outcome(undisturbed(seed).rows()), "other decisions than undisturbed")
        except Failure as failure:
            failures.append(str(failure))
        finally:
            left = cluster.end()
        failures += [f"left over: {left}"] if left else []
    return row("raylet", kills, failures, f"two nodes, PostgreSQL, {points} metric points in MLflow once each")


def _environment(cluster: Cluster) -> dict[str, str]:
    """What the driver of a search has on the head node."""
    head = cluster.services["ray-head"].environment
    return {key: head[key] for key in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH", "PGPASSFILE")} | {
        "RAY_ADDRESS": f"127.0.0.1:{cluster.ports[6379]}",
        "TUNE_DLRML_STUDY_URL": f"postgresql://study@127.0.0.1:{cluster.ports[5432]}/study",
    }


def _kill_all(search: ToySearch, cluster: Cluster, rng: Any, kills: int) -> None:
    driver, worker = search.start(), cluster.services["ray-worker"]
    with ended_afterwards(driver):
        for _ in range(kills):
            wait_for(lambda: _raylets_of_the_worker(cluster), PROGRESS_S, "the worker node", driver)
            before = search.progress()
            wait_for(lambda seen=before: search.progress() > seen, PROGRESS_S, "progress after a kill", driver)
            time.sleep(rng.uniform(0, 2))
            require(driver.poll() is None, f"the search ended before the node could be killed: {search.said()[-500:]}")
            for raylet in _raylets_of_the_worker(cluster):
                raylet.kill()
            psutil.wait_procs([worker.process], timeout=30)  # the node's foreground process ends with its raylet
            worker.start()
        require(driver.wait(900) == 0, f"the search ended with exit code {driver.returncode}: {search.said()}")


def _raylets_of_the_worker(cluster: Cluster) -> list[psutil.Process]:
    folder = str(cluster.root / "w")
    return [each for each in cluster.processes() if each.name() == "raylet" and folder in " ".join(each.cmdline())]
