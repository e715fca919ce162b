"""Secrets that a search is given appear in no byte that it leaves behind or prints."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psycopg
import pytest
import toy
from cluster.services import free_ports
from command_line import called, ended, started, without
from evaluation.endpoint_server import EndpointServer
from servers import has_postgres, postgres_server, process, wait_for

from tune_dlrml.config.yaml_text import as_yaml_text

pytestmark = pytest.mark.slow

SECRETS = {
    "password in the tracking URI": "canary-in-tracking-uri",
    "MLFLOW_TRACKING_PASSWORD": "canary-in-mlflow-password",
    "TUNE_DLRML_STUDY_URL": "canary-in-study-url",
    "OPENAI_API_KEY": "canary-in-openai-key",
}
SEARCH_S, SCAN_EVERY_S = 400, 0.5


def found_in(content: bytes) -> set[str]:
    """Names of the secrets in a content."""
    return {name for name, secret in SECRETS.items() if secret.encode() in content}


class Watch(threading.Thread):
    """Looks into every file below a folder while its owners run, since they remove some of them at their end."""

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        self.hits: dict[str, set[str]] = {}
        self.looked_at: set[str] = set()
        self._folder, self._seen, self._ended = folder, dict[Path, tuple[int, int]](), threading.Event()

    def run(self) -> None:
        while not self._ended.wait(SCAN_EVERY_S):
            self.look()

    def look(self) -> None:
        # Other than rglob, walk passes over folders that are removed meanwhile.
        for path in (Path(folder, name) for folder, _, names in os.walk(self._folder) for name in names):
            try:
                state = path.lstat()
                if not path.is_file() or self._seen.get(path) == (state.st_mtime_ns, state.st_size):
                    continue
                self._seen[path] = state.st_mtime_ns, state.st_size
                hits = found_in(path.read_bytes())
            except OSError:  # it was removed meanwhile
                continue
            self.looked_at.add(path.name)
            if hits:
                self.hits[str(path.relative_to(self._folder))] = hits

    def end(self) -> None:
        self._ended.set()
        self.join()
        self.look()


@contextmanager
def mlflow_server(folder: Path) -> Iterator[int]:
    (port,) = free_ports(1)
    program = str(Path(sys.executable).with_name("mlflow"))
    argv = [program, "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    argv += [
        "--backend-store-uri",
        f"sqlite:///{folder}/mlflow.db",
        "--artifacts-destination",
        str(folder / "artifacts"),
    ]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with process(argv, folder / "server.log", env=environment):
        wait_for(lambda: urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).status == 200)
        yield port


def rows_of(url: str) -> str:
    """Every row of a database as text; the files of a server may hold it compressed."""
    with psycopg.connect(url, password=SECRETS["TUNE_DLRML_STUDY_URL"]) as connection:
        tables = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
        return "\n".join(str(connection.execute(f'SELECT t::text FROM "{name}" t').fetchall()) for (name,) in tables)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short name, which Ray's sockets need, that a database of another user can be in."""
    path = Path(tempfile.mkdtemp(prefix="c", dir="/tmp"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def test_no_secret_is_in_any_byte_that_a_search_leaves_or_prints(folder: Path) -> None:
    space, watched = folder / "space", folder / "t"
    for path in (space, watched, folder / "mlflow", folder / "postgres"):
        path.mkdir()
    environment = without("RAY_ADDRESS")
    environment |= {name: SECRETS[name] for name in ("MLFLOW_TRACKING_PASSWORD", "OPENAI_API_KEY")}
    environment |= {"MLFLOW_TRACKING_USERNAME": "canary", "TMPDIR": str(watched)}
    with ExitStack() as servers:
        port = servers.enter_context(mlflow_server(folder / "mlflow"))
        judge = servers.enter_context(EndpointServer.replying(lambda messages: "Rating: [[7]]"))
        database = (
            servers.enter_context(postgres_server(folder / "postgres", SECRETS["TUNE_DLRML_STUDY_URL"]))
            if has_postgres()
            else None
        )
        if database is not None:
            secret = SECRETS["TUNE_DLRML_STUDY_URL"]
            environment["TUNE_DLRML_STUDY_URL"] = database.replace("canary@", f"canary:{secret}@")
        tracking = f"http://user:{SECRETS['password in the tracking URI']}@127.0.0.1:{port}"
        watch = Watch(watched)
        watch.start()
        write_search(space, tracking, judge.url)
        printed = commands(space, tracking, environment)
        watch.end()
        rows = "" if database is None else rows_of(database)

    assert "search.log" in {path.name for path in (space / "runs/canary").iterdir()}
    assert {"gcs_server.out", "raylet.out"} <= watch.looked_at, "the logs of Ray were not looked at"
    assert database is None or "canary" in rows, "the study was not in the database"
    keys = {request["headers"]["authorization"] for request in judge.requests}
    assert keys == {f"Bearer {SECRETS['OPENAI_API_KEY']}"}, "the judge was not asked with its key"
    assert {request["body"]["model"] for request in judge.requests} == {"judge", "second"}
    assert b"eval_accuracy" in (folder / "mlflow/mlflow.db").read_bytes(), "MLflow was not used"
    hits = dict(watch.hits)
    for path in (*space.rglob("*"), *(folder / "mlflow").rglob("*")):
        if path.is_file() and path.name != "space.yaml":
            hits[str(path.relative_to(folder))] = found_in(path.read_bytes())
    hits |= {"printed": found_in("".join(printed).encode()), "the study's database": found_in(rows.encode())}
    assert {place: names for place, names in hits.items() if names} == {}


def write_search(space: Path, tracking: str, judge: str) -> None:
    document = toy.document(
        toy.write_model(space / "model"),
        toy.write_pairs(space / "train.jsonl", 48),
        toy.write_pairs(space / "eval.jsonl", 32, seed=1),
        name="canary",
        tracking={"mlflow": tracking},
    )
    document["training"]["max_steps"] = 4
    document["search"] = {"num_trials": 2, "scheduler": {"grace_period": 2, "reduction_factor": 2}}
    document["evaluation"] = {"judges": ["openai:judge"], "judge_url": judge, "limit": 2, "max_new_tokens": 8}
    (space / "space.yaml").write_text(as_yaml_text(document))


def commands(space: Path, tracking: str, environment: dict[str, str]) -> list[str]:
    """What is printed by searches whose servers are away, and by one that goes well, from its check to its table.

    A second driver goes on with that one: for another judge, which needs no training.
    """

    def printed(*argv: str, code: int = 0) -> str:
        return printed_by(ended(started(*argv, folder=space, environment=environment), within_s=SEARCH_S), code)

    def printed_here(*argv: str) -> str:
        return printed_by(called(*argv, folder=space, environment=environment), 0)

    ports = free_ports(2)
    url = f"postgresql://canary:{SECRETS['TUNE_DLRML_STUDY_URL']}@127.0.0.1:{ports[0]}/postgres"
    away = "tracking.mlflow=" + re.sub(r":\d+$", f":{ports[1]}", tracking)
    search = ("search", "space.yaml")
    checked = printed_here("doctor", "space.yaml")
    with ThreadPoolExecutor() as pool:
        together = [
            pool.submit(printed, *search, "--json"),
            pool.submit(printed, *search, "--name", "no_mlflow", "--set", away, code=2),
            pool.submit(printed, *search, "--name", "no_database", "--study-url", url, code=130),
        ]
    again = printed(*search, "--set", "evaluation.judges=[openai:judge, openai:second]")
    tables = [printed_here("status", "canary", *options) for options in ((), ("--json",))]
    return [checked, *(future.result() for future in together), again, *tables]


def printed_by(done: subprocess.CompletedProcess[str], code: int) -> str:
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr
