"""What a search leaves behind once it has ended, undisturbed or killed and resumed: nothing but its own folder."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import urllib.request
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from cluster.services import free_ports

from faults.toy_search import PROGRESS_S, Failure, ToySearch, ended_afterwards, generator, require, row, wait_for

OF_THE_CLUSTER = {"_AutoscalingCoordinatorActor"}
"""Actors that Ray makes once for a whole cluster, whoever trains on it first."""
GONE_S = 60.0
"""What Ray may take to end the processes of a driver that was killed."""


def run(*, seed: int) -> dict[str, Any]:
    rng, failures = generator("leftovers", seed), []
    tried = [_on_its_own_cluster, _on_a_cluster_that_stays]
    for check in tried:
        try:
            with tempfile.TemporaryDirectory(prefix="fault_leftovers_") as name:
                check(Path(name), rng)
        except Failure as failure:
            failures.append(str(failure))
    return row("leftovers", len(tried), failures, "processes, temporary files, actors, placement groups, descriptors")


def end_and_kill(search: ToySearch, rng: Any) -> None:
    """One search that ends, and one that is killed twice and resumed."""
    for name in ("ended", "killed"):
        search.name = name
        for _ in range(2 if name == "killed" else 0):
            before, driver = search.progress(), search.start("--name", name)
            with ended_afterwards(driver):
                wait_for(lambda seen=before: search.progress() > seen, PROGRESS_S, "progress", driver)
                driver.send_signal(signal.SIGKILL)
                driver.wait()
        search.run("--name", name)


def short_folder() -> Path:
    """A temporary folder for one search alone; its path is short, since Ray puts sockets below it."""
    return Path(tempfile.mkdtemp(prefix="t_", dir="/tmp"))


def own_temporary_folder(search: ToySearch) -> Path:
    """A temporary folder that only this search uses from now on."""
    folder = short_folder()
    search.environment["TMPDIR"] = str(folder)
    return folder


def processes_of(folder: Path) -> dict[int, str]:
    """Living processes whose temporary folder, or an open file, lies in this one."""
    found = {}
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            opened = [file.path for file in process.open_files()]
            known = [process.environ().get("TMPDIR", ""), *opened]
            if any(path.startswith(str(folder)) for path in known) and process.status() != psutil.STATUS_ZOMBIE:
                found[process.pid] = " ".join(process.cmdline())
    return found


def check_nothing_is_left(folder: Path) -> None:
    """Neither a process nor a file below the temporary folder of searches that have ended."""
    wait_for(lambda: not processes_of(folder), GONE_S, "the end of a search's processes")
    left = sorted(entry.name for entry in folder.iterdir())
    require(not left, f"temporary files left over: {left}")
    folder.rmdir()


def _on_its_own_cluster(folder: Path, rng: Any) -> None:
    search = ToySearch(folder, trials=2, steps=80)
    temporary, shared = own_temporary_folder(search), set(os.listdir("/dev/shm"))
    descriptors = psutil.Process().num_fds()
    end_and_kill(search, rng)
    check_nothing_is_left(temporary)
    require(set(os.listdir("/dev/shm")) <= shared, "shared memory left over")
    require(psutil.Process().num_fds() == descriptors, "descriptors of the process that started the searches")


def _on_a_cluster_that_stays(folder: Path, rng: Any) -> None:
    """On a cluster that outlives its searches nothing adds up: a third round leaves as much as the second.

    The first does not count: Ray's own processes connect to each other when they first need to.
    """
    search = ToySearch(folder / "search", trials=2, steps=80)
    node = Node()
    try:
        search.environment = node.environment
        seen = []
        for round_ in ("first", "second", "third"):
            search.folder.joinpath("runs").rename(folder / f"runs-{round_}") if search.runs.exists() else None
            end_and_kill(search, rng)
            wait_for(lambda: not node.alive("actors"), GONE_S, "the end of all actors")
            wait_for(lambda: not node.alive("placement_groups"), GONE_S, "the end of all placement groups")
            seen.append(node.descriptors())
        what = f"as few descriptors of the cluster's processes as after the second round: {[*map(dict, seen)]}"
        wait_for(lambda: all(count <= seen[1][name] for name, count in node.descriptors().items()), GONE_S, what)
    finally:
        node.end()


def _sockets(pid: int) -> int:
    links = []
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            links.append(os.readlink(descriptor))
    return sum(link.startswith("socket:") for link in links)


class Node:
    """A Ray node of this run's own."""

    def __init__(self) -> None:
        self._folder = tempfile.mkdtemp(prefix="node_", dir="/tmp")
        token = Path(self._folder) / "token"
        self._token = os.urandom(32).hex()
        token.touch(mode=0o600)
        token.write_text(self._token)
        port, dashboard, agent, client, metrics = free_ports(5)
        self.environment = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_ADDRESS": f"127.0.0.1:{port}",
        }
        self._dashboard = f"http://127.0.0.1:{dashboard}"
        self._process = psutil.Popen(
            [
                *(Path(sys.executable).with_name("ray"), "start", "--head", "--block", "--num-cpus=2"),
                *(f"--port={port}", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}"),
                *(f"--ray-client-server-port={client}", f"--metrics-export-port={metrics}"),
                *("--node-ip-address=127.0.0.1", f"--temp-dir={self._folder}", "--disable-usage-stats"),
            ],
            env=os.environ | self.environment | {"TMPDIR": self._folder},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            wait_for(self._is_up, 90, "the Ray node")
        except BaseException:
            self.end()
            raise

    def alive(self, kind: str) -> list[str]:
        """Actors or placement groups that are not gone, by their class or id."""
        return [
            entry.get("class_name") or entry["placement_group_id"]
            for entry in self._list(kind)
            if entry["state"] not in ("DEAD", "REMOVED") and entry.get("class_name") not in OF_THE_CLUSTER
        ]

    def descriptors(self) -> Counter[str]:
        """Open files, pipes and connections of the processes that stay, by their name.

        Sockets that are connected to nobody do not count: Ray 2.60's gcs_server keeps one for every process that was
        its client, also of a driver that does nothing but `ray.init()` and `ray.shutdown()`.
        """
        counted: Counter[str] = Counter()
        for process in self._process.children(recursive=True):
            if process.name() in ("gcs_server", "raylet"):
                connected = [c for c in process.net_connections("inet") if c.status == psutil.CONN_ESTABLISHED]
                counted[process.name()] += process.num_fds() - _sockets(process.pid) + len(connected)
        return counted

    def end(self) -> None:
        started = [*self._process.children(recursive=True), self._process]
        for process in started:
            process.kill()
        psutil.wait_procs(started, timeout=20)
        subprocess.run(["rm", "-rf", self._folder], check=True)

    def _list(self, kind: str) -> list[dict[str, Any]]:
        """What the dashboard lists."""
        query = urllib.request.Request(
            f"{self._dashboard}/api/v0/{kind}?limit=1000", headers={"Authorization": f"Bearer {self._token}"}
        )
        with urllib.request.urlopen(query, timeout=60) as answer:
            found: list[dict[str, Any]] = json.load(answer)["data"]["result"]["result"]
        return found

    def _is_up(self) -> bool:
        try:
            return bool(self._list("nodes"))
        except OSError:
            return False
