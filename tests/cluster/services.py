"""The services of docker/compose.yaml as local processes on loopback: their own commands, without Docker.

What Docker would do is done here: every service has its own folder for the secrets, volumes and files it mounts, names
of services become 127.0.0.1, and ports become free ones.
"""

import itertools
import os
import pwd
import random
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from glob import glob
from pathlib import Path
from typing import Any

import psutil
from ruamel.yaml import YAML

PROJECT = Path(__file__).parents[2]
COMPOSE = PROJECT / "docker" / "compose.yaml"
POSTGRES_PROGRAMS = ("initdb", "pg_ctl", "pg_isready", "postgres", "psql")
PORTS = {"postgres": (5432,), "mlflow": (5000,), "ray-head": (6379, 8265), "ray-worker": (52365,)}
HOME = "/home/search"
VARIABLES = {"WORKER_CPUS": "1"}
OWN_PORTS = list(range(20000 + os.getpid() % 64, 32768, 64))
"""Below those that the kernel gives out on Linux, and others than those of tests that run in another process."""
HEALTHY_S, END_S = 120.0, 5.0
SEARCH_PATH = os.pathsep.join(
    [str(Path(sys.executable).parent), *sorted(glob("/usr/lib/postgresql/*/bin"), reverse=True), os.environ["PATH"]]
)


def lacking() -> str:
    """What this machine lacks for PostgreSQL; empty if nothing."""
    lacks = [name for name in POSTGRES_PROGRAMS if shutil.which(name, path=SEARCH_PATH) is None]
    if os.getuid() == 0 and "postgres" not in {user.pw_name for user in pwd.getpwall()}:
        lacks.append("a user `postgres` to run it, since root may not")
    return ", ".join(lacks)


def free_ports(count: int, promised: Iterable[int] = ()) -> list[int]:
    """Ports that stay free until a service binds them, since nobody is given them without asking."""
    candidates = random.SystemRandom().sample([*{*OWN_PORTS} - {*promised}], len(OWN_PORTS) // 2)
    return list(itertools.islice(filter(_is_free, candidates), count))


def _is_free(port: int) -> bool:
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


@dataclass
class Service:
    """One service: what Compose says about it, and its process here."""

    name: str
    document: dict[str, Any]
    folder: Path
    argv: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    health: list[str] = field(default_factory=list)
    process: psutil.Popen | None = None

    @property
    def needs(self) -> set[str]:
        return set(self.document.get("depends_on", ()))

    @property
    def user(self) -> str | None:
        """PostgreSQL refuses to run as root."""
        return "postgres" if self.name == "postgres" and os.getuid() == 0 else None

    @property
    def log(self) -> Path:
        return self.folder / "log"

    def run(self, *argv: str, **more: str) -> subprocess.CompletedProcess[str]:
        """A command inside the service."""
        return subprocess.run(
            argv,
            env=self.environment | more,
            cwd=self.folder,
            user=self.user,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    def succeed(self, *argv: str, **more: str) -> None:
        done = self.run(*argv, **more)
        assert done.returncode == 0, f"{argv[0]}: {done.stderr}{done.stdout}"

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = psutil.Popen(
                self.argv,
                env=self.environment,
                cwd=self.folder,
                user=self.user,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait_until_healthy(self) -> None:
        deadline = time.monotonic() + HEALTHY_S
        while self.run(*self.health).returncode != 0:
            assert self.process is not None and self.process.poll() is None, f"{self.name}: {self.log.read_text()}"
            assert time.monotonic() < deadline, f"{self.name} is not healthy: {self.log.read_text()}"
            time.sleep(0.5)


class Cluster:
    """All services of the compose file, in a folder of their own below /tmp."""

    def __init__(self, secrets: Path) -> None:
        # A short path, since Ray puts sockets into it; passable, since PostgreSQL runs as another user than root.
        self.root = Path(tempfile.mkdtemp(prefix="clu_", dir="/tmp"))
        self.root.chmod(0o711)
        self.shared = self._folder("volumes", "shared")
        self.document = YAML(typ="safe", pure=True).load(COMPOSE.read_text(encoding="utf-8"))
        numbers = [number for ports in PORTS.values() for number in ports]
        self.ports = dict(zip(numbers, free_ports(len(numbers)), strict=True))
        self.services = {name: self._service(name, secrets) for name in self.document["services"]}
        self._add_image_and_host()

    def start(self) -> None:
        """Start every service once those that it depends on are healthy."""
        healthy: set[str] = set()
        while ready := [each for each in self.services.values() if each.name not in healthy and each.needs <= healthy]:
            for service in ready:
                if service.name == "postgres":
                    initialise_postgres(service, self.ports[5432])
                service.start()
            for service in ready:
                service.wait_until_healthy()
                healthy.add(service.name)

    def start_one(self, name: str) -> None:
        """Start a service whose needs were started before."""
        service = self.services[name]
        if name == "postgres":
            initialise_postgres(service, self.ports[5432])
        service.start()
        service.wait_until_healthy()

    def translated(self, text: str, places: dict[str, Path] | None = None) -> str:
        """A text of the compose file as it reads on this machine."""
        text = re.sub(rf"\b({'|'.join(PORTS)})(?=:\d)", "127.0.0.1", text).replace("0.0.0.0", "127.0.0.1")
        text = re.sub(r"\d+", lambda number: str(self.ports.get(int(number[0]), number[0])), text)
        for inside, outside in (places or {"/shared": self.shared}).items():
            text = re.sub(rf"(?<![\w/]){re.escape(inside)}(?!\w)", str(outside), text)
        return text

    def processes(self) -> list[psutil.Process]:
        """Living processes of the cluster: started here, descended from those, or holding a file of the cluster."""
        found = {}
        for service in self.services.values():
            if service.process is not None:
                with suppress(psutil.NoSuchProcess):
                    children = service.process.children(recursive=True)
                    found |= {process.pid: process for process in (service.process, *children)}
        for process in psutil.process_iter():
            if process.pid != os.getpid() and self._holds(process):
                found[process.pid] = process
        return [process for process in found.values() if is_alive(process)]

    def end(self) -> list[psutil.Process]:
        """End every process of the cluster, children first, and remove its folder; what could not be ended."""
        for send in (psutil.Process.terminate, psutil.Process.kill):
            processes = self.processes()
            for process in reversed(processes):
                with suppress(psutil.NoSuchProcess):
                    send(process)
            psutil.wait_procs(processes, timeout=END_S)
        left = self.processes()
        shutil.rmtree(self.root, ignore_errors=True)
        return left

    def _holds(self, process: psutil.Process) -> bool:
        try:
            paths = [process.cwd(), *process.cmdline(), *(opened.path for opened in process.open_files())]
        except psutil.Error:
            return False
        return any(str(self.root) in path for path in paths)

    def _folder(self, *parts: str) -> Path:
        path = self.root.joinpath(*parts)
        path.mkdir(parents=True, exist_ok=True)
        return path

    def _service(self, name: str, secrets: Path) -> Service:
        document = self.document["services"][name]
        service = Service(name, document, self._folder(name))
        places = self._mounts(service) | self._secrets(service, secrets)
        places |= {HOME: self._folder(name, "home")}
        command = re.sub(r"\$\{(\w+)[^}]*\}", lambda variable: VARIABLES[variable[1]], document["command"])
        service.argv = [self.translated(word, places) for word in shlex.split(command)]
        service.health = [self.translated(word, places) for word in document["healthcheck"]["test"][1:]]
        service.environment = {
            "PATH": SEARCH_PATH,
            "HOME": str(places[HOME]),
            "LANG": "C.UTF-8",
            "PYTHONUNBUFFERED": "1",
            **{key: self.translated(value, places) for key, value in document["environment"].items()},
        }
        if service.user is not None:
            for path in (service.folder, *service.folder.rglob("*")):
                shutil.chown(path, service.user, service.user)
        return service

    def _mounts(self, service: Service) -> dict[str, Path]:
        """Where a service finds its volumes and mounted files; a file is copied, with its addresses translated."""
        places = {}
        for volume in service.document["volumes"]:
            source, inside = volume.split(":")[:2]
            if source.startswith("./"):
                places[inside] = self._folder(service.name, "files") / Path(inside).name
                text = (COMPOSE.parent / source).read_text(encoding="utf-8")
                places[inside].write_text(self.translated(text), encoding="utf-8")
            elif source == "shared":
                places[inside] = self.shared
            else:
                places[inside] = self._folder(service.name, "volume")
        return places

    def _secrets(self, service: Service, secrets: Path) -> dict[str, Path]:
        """The secrets that a service is given, and no other."""
        folder = self._folder(service.name, "secrets")
        for secret in service.document["secrets"]:
            named = secret if isinstance(secret, dict) else {"source": secret, "target": secret}
            target = folder / named["target"]
            if named["target"].startswith(HOME):
                target = self._folder(service.name, "home") / Path(named["target"]).relative_to(HOME)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.touch(mode=0o600)
            target.write_bytes((secrets / named["source"]).read_bytes())
        return {"/run/secrets": folder}

    def _add_image_and_host(self) -> None:
        """What two Ray nodes on one host need beside their commands: own folders and ports, little memory."""
        agent, client, *metrics = free_ports(4, promised=self.ports.values())
        common = ["--node-ip-address=127.0.0.1", "--object-store-memory=80000000"]
        common += ["--min-worker-port=0", "--max-worker-port=0"]  # any: one range for both would clash
        head, worker = self.services["ray-head"], self.services["ray-worker"]
        head.argv += [*common, f"--temp-dir={self._folder('h')}", f"--metrics-export-port={metrics[0]}"]
        head.argv += [f"--dashboard-agent-listen-port={agent}", f"--ray-client-server-port={client}"]
        worker.argv += [*common, f"--temp-dir={self._folder('w')}", f"--metrics-export-port={metrics[1]}"]
        worker.argv += ["--include-log-monitor=false"]


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def initialise_postgres(service: Service, port: int) -> None:
    """What the image of PostgreSQL does with an empty data folder: initdb, then its scripts over the socket alone."""
    data, password = service.environment["PGDATA"], Path(service.environment["POSTGRES_PASSWORD_FILE"])
    arguments = shlex.split(service.environment["POSTGRES_INITDB_ARGS"])
    service.succeed("initdb", "--username=postgres", f"--pwfile={password}", "--no-sync", *arguments, data)
    with Path(data, "postgresql.conf").open("a", encoding="utf-8") as file:
        file.write(f"port = {port}\nlisten_addresses = '127.0.0.1'\nunix_socket_directories = '{service.folder}'\n")
    control = ["pg_ctl", "--wait", "--pgdata", data]
    service.succeed(*control, "--log", str(service.log), "--options", "-c listen_addresses=''", "start")
    client = {"PGHOST": str(service.folder), "PGPORT": str(port), "PGPASSWORD": password.read_text().strip()}
    for script in sorted((service.folder / "files").glob("*.sql")):
        psql = ["psql", "--no-psqlrc", "--set=ON_ERROR_STOP=1", "--no-password", "--username=postgres"]
        service.succeed(*psql, "--dbname=postgres", f"--file={script}", **client)
    service.succeed(*control, "stop")
