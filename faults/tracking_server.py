"""An MLflow server that is stopped (SIGSTOP) and killed at random moments of a search."""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from cluster.services import free_ports

from faults.toy_search import (
    PROGRESS_S,
    Failure,
    ToySearch,
    check_ended,
    check_mlflow,
    ended_afterwards,
    generator,
    require,
    row,
    wait_for,
)

ANSWER_S = 90.0


class Server:
    """MLflow behind HTTP, as one process group: the server starts workers of its own."""

    def __init__(self, folder: Path) -> None:
        (self.port,) = free_ports(1)
        self.uri = f"http://127.0.0.1:{self.port}"
        self._folder = folder
        self.start()

    def start(self) -> None:
        with (self._folder / "mlflow.log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *(Path(sys.executable).with_name("mlflow"), "server", "--host", "127.0.0.1"),
                    *("--port", str(self.port), "--workers", "1"),
                    *("--backend-store-uri", f"sqlite:///{self._folder}/server.db"),
                    *("--artifacts-destination", str(self._folder / "artifacts")),
                ],
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        wait_for(self.answers, ANSWER_S, "an answer of the MLflow server")

    def answers(self) -> bool:
        try:
            return bool(urllib.request.urlopen(f"{self.uri}/health", timeout=2).status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def signal(self, number: signal.Signals) -> None:
        """To the server and the workers that it started."""
        os.killpg(self._process.pid, number)
        if number == signal.SIGKILL:
            self._process.wait()


def run(*, seed: int, faults: int = 8) -> dict[str, Any]:
    failures: list[str] = []
    rng, points, stops, kills = generator("mlflow", seed), 0, 0, 0
    with tempfile.TemporaryDirectory(prefix="fault_mlflow_") as name:
        server = Server(Path(name))
        search = ToySearch(Path(name) / "search", trials=12, steps=400)
        arguments = ("--set", f"tracking.mlflow={server.uri}")
        driver = search.start(*arguments)
        try:
            with ended_afterwards(driver):
                wait_for(lambda: search.progress() > 0, PROGRESS_S, "the first report", driver)
                while stops + kills < faults and driver.poll() is None:
                    time.sleep(rng.uniform(0, 6))
                    stops, kills = _disturb(server, rng, stops, kills)
                require(driver.wait(900) == 0, f"the search ended with exit code {driver.returncode}: {search.said()}")
            search.run(*arguments)  # what was left in the outbox when the search ended
            check_ended(search)
            points = check_mlflow(search, server.uri)
        except Failure as failure:
            failures.append(str(failure))
        finally:
            server.signal(signal.SIGKILL)
    detail = f"{stops} times stopped, {kills} times killed, {points} metric points there once each"
    return row("mlflow", stops + kills, failures, detail)


def _disturb(server: Server, rng: random.Random, stops: int, kills: int) -> tuple[int, int]:
    if rng.random() < 0.5:
        server.signal(signal.SIGSTOP)
        time.sleep(rng.uniform(1, 20))
        server.signal(signal.SIGCONT)
        return stops + 1, kills
    server.signal(signal.SIGKILL)
    time.sleep(rng.uniform(0, 5))
    server.start()
    return stops, kills + 1
