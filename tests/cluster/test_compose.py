"""A search on the cluster of docker/compose.yaml, whose services run here as local processes."""

import base64
import configparser
import json
import re
import shlex
import subprocess
import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pytest
import toy
from cluster.services import PROJECT, SEARCH_PATH, Cluster, lacking

from tune_dlrml.config.yaml_text import as_yaml_text

pytestmark = [
    pytest.mark.slow,
    pytest.mark.postgres,
    pytest.mark.skipif(bool(lacking()), reason=f"PostgreSQL cannot run here, for want of {lacking()}"),
]

TRIALS, STEPS = 4, 8
STATES = {"WAITING", "RUNNING", "COMPLETE", "PRUNED", "FAIL"}
TRIAL_TABLES = (
    "trials",
    "trial_params",
    "trial_values",
    "trial_intermediate_values",
    "trial_user_attributes",
    "trial_system_attributes",
)


@dataclass
class Story:
    """What was seen of the cluster before it was ended."""

    first: subprocess.CompletedProcess[str]
    again: subprocess.CompletedProcess[str]
    at_fault: subprocess.CompletedProcess[str]
    study: dict[str, list[tuple[Any, ...]]]
    study_after: dict[str, list[tuple[Any, ...]]]
    runs: list[dict[str, Any]]
    runs_after: list[dict[str, Any]]
    refusals: dict[str, int]
    leaks: list[str]
    folder: list[str]
    left: list[Any] = field(default_factory=list)


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    secrets = tmp_path_factory.mktemp("secrets")
    subprocess.run([str(PROJECT / "docker" / "make-secrets.sh"), str(secrets)], check=True)
    cluster = Cluster(secrets)
    try:
        job = write_search(tmp_path_factory.mktemp("job"), cluster.shared)
        script = (PROJECT / "docker" / "no-retry.sh").read_text(encoding="utf-8")
        (job / "no-retry.sh").write_text(cluster.translated(script), encoding="utf-8")
        cluster.start()
        told = watch(cluster, secrets, job)
    finally:
        left = cluster.end()
    told.left = left
    return told


def watch(cluster, secrets, job):
    """Search, search again, knock at every door without a key, and look for secrets in all that was written."""
    with ThreadPoolExecutor() as pool:  # the search takes as long as all else together
        at_fault = pool.submit(submit_at_fault, cluster, secrets, job)
        first = submit(cluster, secrets, job)
    study, runs = rows_of_study(cluster, secrets), runs_of_mlflow(cluster, secrets)
    again = submit(cluster, secrets, job)
    return Story(
        first=first,
        again=again,
        at_fault=at_fault.result(),
        study=study,
        study_after=rows_of_study(cluster, secrets),
        runs=runs,
        runs_after=runs_of_mlflow(cluster, secrets),
        refusals=refusals(cluster),
        leaks=leaks(cluster, secrets, first.stdout + first.stderr + again.stdout + again.stderr),
        folder=sorted(path.name for path in (cluster.shared / "runs" / "my-search").iterdir()),
    )


def write_search(folder, shared):
    """A search-space file with its pairs, as a person would send them along; the model lies in the shared folder."""
    document = toy.document(toy.write_model(shared / "model"), Path("train.jsonl"), Path("eval.jsonl"))
    document["training"]["max_steps"] = STEPS
    document["search"] |= {"num_trials": TRIALS}
    toy.write_pairs(folder / "train.jsonl", 64)
    toy.write_pairs(folder / "eval.jsonl", 32, seed=1)
    (folder / "space.yaml").write_text(as_yaml_text(document), encoding="utf-8")
    return folder


def submit(cluster, secrets, job):
    """The command of docker/README.md, in the folder of the search-space file."""
    readme = (PROJECT / "docker" / "README.md").read_text(encoding="utf-8").replace("\\\n", " ")
    (line,) = re.findall(r"^ray job submit .*$", readme, re.MULTILINE)
    return run_ray(cluster.translated(line), secrets, job)


def submit_at_fault(cluster, secrets, job):
    """What KubeRay submits, through docker/no-retry.sh, with a search-space file that does not exist."""
    line = "ray job submit --address http://127.0.0.1:8265 --working-dir . --submission-id at-fault -- "
    command = "sh no-retry.sh at-fault tune-dlrml search absent.yaml --storage /shared/runs"
    return run_ray(cluster.translated(line + command), secrets, job)


def run_ray(line, secrets, job):
    """A command of Ray in the folder of the job, with the token."""
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(secrets / "ray_token")}
    return subprocess.run(
        [str(Path(sys.executable).with_name("ray")), *shlex.split(line)[1:]],
        cwd=job,
        env={"PATH": SEARCH_PATH, "HOME": str(job), "LANG": "C.UTF-8"} | token,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def rows_of_study(cluster, secrets):
    address = {"host": "127.0.0.1", "port": cluster.ports[5432], "user": "study", "dbname": "study"}
    with psycopg.connect(**address, passfile=str(secrets / "study_pgpass")) as connection:
        return {table: sorted(connection.execute(f"SELECT * FROM {table}").fetchall()) for table in TRIAL_TABLES}


def runs_of_mlflow(cluster, secrets):
    credentials = configparser.ConfigParser()
    credentials.read(secrets / "mlflow_credentials")
    user, password = (credentials["mlflow"][f"mlflow_tracking_{key}"] for key in ("username", "password"))
    key = {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}
    experiment = mlflow(cluster, "experiments/get-by-name?experiment_name=tune_dlrml", None, key)["experiment"]
    query = {"experiment_ids": [experiment["experiment_id"]], "max_results": 100}
    runs = sorted(mlflow(cluster, "runs/search", query, key)["runs"], key=lambda run: run["info"]["run_id"])
    for run in runs:
        if "tune_dlrml.trial" not in tags(run):
            del run["info"]["end_time"]  # the search's own run ends whenever its command does
    return runs


def tags(run):
    return {tag["key"]: tag["value"] for tag in run["data"]["tags"]}


def mlflow(cluster, call, query, headers):
    url = f"http://127.0.0.1:{cluster.ports[5000]}/api/2.0/mlflow/{call}"
    data = None if query is None else json.dumps(query).encode()
    request = urllib.request.Request(url, data, headers | {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def refusals(cluster):
    """What each door answers to a stranger, by its name."""
    dashboard, tracking = (f"http://127.0.0.1:{cluster.ports[port]}" for port in (8265, 5000))
    doors = {
        "dashboard, no token": (f"{dashboard}/api/jobs/", {}),
        "dashboard, wrong token": (f"{dashboard}/api/jobs/", {"Authorization": "Bearer " + "0" * 64}),
        "MLflow, no password": (f"{tracking}/api/2.0/mlflow/experiments/search?max_results=1", {}),
        "MLflow, wrong password": (
            f"{tracking}/api/2.0/mlflow/experiments/search?max_results=1",
            {"Authorization": "Basic " + base64.b64encode(b"search:wrong").decode()},
        ),
    }
    return {name: status(url, headers) for name, (url, headers) in doors.items()}


def status(url, headers):
    try:
        return urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=30).status
    except urllib.error.HTTPError as error:
        return error.code


def leaks(cluster, secrets, told):
    """Where a secret is found that is not a secret file: files, logs, command lines, what the jobs said."""
    words = {word.encode() for path in secrets.iterdir() for word in re.findall(r"[0-9a-f]{64}", path.read_text())}
    assert len(words) == 6  # token, superuser, study, mlflow, its admin, the key of its sessions
    held = {service.folder / part for service in cluster.services.values() for part in ("secrets", "home", "volume")}
    texts = {str(path): path.read_bytes() for path in regular_files(cluster.root) if not held & set(path.parents)}
    assert any("job-driver" in path for path in texts) and any("events.jsonl" in path for path in texts)
    texts |= {f"command of {process.pid}": "\0".join(process.cmdline()).encode() for process in cluster.processes()}
    texts["output of the jobs"] = told.encode()
    return [name for name, text in texts.items() if any(word in text for word in words)]


def regular_files(folder):
    return [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]


def test_the_job_succeeds(story):
    assert story.first.returncode == 0, story.first.stdout + story.first.stderr
    assert "succeeded" in story.first.stdout


def test_every_trial_ended_and_is_in_postgresql(story):
    assert len(story.study["trials"]) == TRIALS
    assert {state for row in story.study["trials"] for state in STATES & set(row)} <= {"COMPLETE", "PRUNED"}


def test_the_study_is_nowhere_else(story):
    assert "study.db" not in story.folder and {"trials", "search.yaml"} <= set(story.folder)


def test_mlflow_has_the_search_and_a_run_of_every_trial(story):
    trials = [tags(run).get("tune_dlrml.trial", "the search") for run in story.runs]
    assert sorted(trials) == [*map(str, range(TRIALS)), "the search"]
    assert {run["info"]["status"] for run in story.runs} == {"FINISHED"}
    assert all(run["data"].get("metrics") for run in story.runs)


def test_the_same_command_again_succeeds_and_changes_nothing(story):
    assert story.again.returncode == 0, story.again.stdout + story.again.stderr
    assert "complete" in story.again.stdout and not re.search(r"trial +\d+ step", story.again.stdout)
    assert story.study_after == story.study
    assert story.runs_after == story.runs


def test_a_search_whose_input_is_at_fault_is_stopped_and_not_failed_so_that_kuberay_ends_it(story):
    told = story.at_fault.stdout + story.at_fault.stderr
    assert "exit code 2" in told and "'at-fault' was stopped" in told, told


def test_strangers_are_refused(story):
    assert {name for name, code in story.refusals.items() if code not in (401, 403)} == set(), story.refusals


def test_no_secret_is_written_anywhere(story):
    assert story.leaks == []


def test_no_process_is_left_over(story):
    assert story.left == []
