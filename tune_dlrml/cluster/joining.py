"""Joins a running Ray cluster, or starts one on this machine for the time of a search."""

import gc
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray._private import ray_constants, services
from ray._raylet import AuthenticationTokenLoader, GcsClient  # type: ignore[attr-defined]
from ray.exceptions import AuthenticationError, RayError

from tune_dlrml.cluster.environment import changed_environment
from tune_dlrml.errors import InputError
from tune_dlrml.system.deadline import answer_in_time

FAULTS = (OSError, ValueError, RuntimeError, RayError)
"""Exceptions of Ray if it cannot be joined or started."""
KNOCK_S = 5.0
"""How long a head that is just starting may take to open its port."""
ANSWER_S = 6.0
"""How long the server behind an open port may take to answer as Ray does."""
PAUSE_S = 0.5
TOKEN = "auth_token"


def joined(address: str, **options: Any) -> Any:
    """The context of a running cluster.

    Args:
        address: `host:port` of its head, or `auto`.
        options: For `ray.init`.

    Raises:
        InputError: No cluster answers there within seconds, or it refuses this process.
    """
    remedy = "start one, unset RAY_ADDRESS, or give its token by RAY_AUTH_TOKEN_PATH with RAY_AUTH_MODE=token"
    if "://" in address:
        raise InputError(
            f"RAY_ADDRESS: host:port of a cluster's head is needed, such as head:6379, or auto, but got {address}, the "
            "address of a dashboard or of a client; submit the command as a job, or give the head's"
        )
    try:
        head = services.canonicalize_bootstrap_address(address)
        _knock(*services.extract_ip_port(head))
        answer_in_time(lambda: GcsClient(address=head), ANSWER_S)
        with _without_uv_hook():
            return ray.init(address=head, **options)
    except TimeoutError:
        cause = f"the server there is not Ray, or has another version: it gave no answer in {ANSWER_S:g} s"
    except FAULTS as error:
        cause = _cause(error)
    raise InputError(f"RAY_ADDRESS: a Ray cluster must answer at {address}, but: {cause}; {remedy}")


@contextmanager
def own_cluster(scratch: Path, **options: Any) -> Iterator[Any]:
    """The context of a new cluster on this machine, which ends with the block.

    Its address is fixed before it starts, so that its processes have it in their environment: Ray Train's placement
    group cleaner, an actor, looks the cluster up again by RAY_ADDRESS. Without that variable the cleaner dies if it
    finds another cluster on the machine or the trace of a dead one, and a killed group's resources are never freed.

    Args:
        scratch: Folder for its files.
        options: For `ray.init`.

    Raises:
        InputError: It does not start.
    """
    port = _free_port()
    address = {"RAY_GCS_SERVER_PORT": str(port), "RAY_ADDRESS": f"{ray.util.get_node_ip_address()}:{port}"}
    with changed_environment(address | _token(scratch)):
        try:
            yield _started({"_temp_dir": str(scratch)} | options)
        finally:
            leave_ray()
            AuthenticationTokenLoader.instance().reset_cache()


def leave_ray() -> None:
    """Leave the cluster, or end that of this process; no other thread may free Ray's objects meanwhile.

    Python collects cycles in whichever thread allocates, and the threads of MLflow and of the judges are still running.
    Tune leaves cycles that refer to Ray: if another thread frees them during the shutdown (2.60), Ray ends the whole
    process with exit code 1 and a line in the log. So they are freed here first, with the collector off.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        gc.collect()
        ray.shutdown()
    finally:
        if collects:
            gc.enable()


def _started(options: dict[str, Any]) -> Any:
    try:
        with _without_uv_hook():
            # Ray Train frees placement groups through the dashboard's State API.
            return ray.init(address="local", include_dashboard=True, **options)
    except FAULTS as error:
        raise InputError(f"Ray must start on this machine, but: {_cause(error)}") from None


def _knock(host: str, port: int) -> None:
    """Wait for a port to open.

    Raises:
        OSError: It does not; Ray itself would try for ten minutes.
    """
    deadline = time.monotonic() + KNOCK_S
    while True:
        left = deadline - time.monotonic()
        try:
            return answer_in_time(lambda: socket.create_connection((host, port), timeout=KNOCK_S).close(), max(left, 1))
        except TimeoutError:
            raise ConnectionError(f"nothing answers at {host}:{port}") from None
        except OSError as error:
            if left < PAUSE_S:
                raise ConnectionError(f"{host}:{port}: {error.strerror or error}") from None
            time.sleep(PAUSE_S)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("", 0))
        return int(free.getsockname()[1])


def _token(scratch: Path) -> dict[str, str]:
    """Environment variables for the token: none if this user has a token, else the path of a new one.

    Ray would make one in the home folder, which may be missing, and readable by everyone.

    Raises:
        InputError: The file that RAY_AUTH_TOKEN_PATH names cannot be read.
    """
    loader = AuthenticationTokenLoader.instance()
    loader.reset_cache()
    try:
        if loader.has_token(ignore_auth_mode=True):
            return {}
    except AuthenticationError as error:
        raise InputError(f"{_cause(error).partition('. ')[0]}; make it, or unset the variable") from None
    finally:
        loader.reset_cache()
    token = scratch / TOKEN
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    return {"RAY_AUTH_TOKEN_PATH": str(token)}


@contextmanager
def _without_uv_hook() -> Iterator[None]:
    """Have Ray start its workers with Python itself, also if this driver was started by `uv run`.

    Otherwise it starts each by `uv run` in an upload of the current folder, of any size, and waits for ever for a node
    without uv. The switch in the environment is read when ray is imported, which may be long ago in a notebook.
    """
    before = ray_constants.RAY_ENABLE_UV_RUN_RUNTIME_ENV
    ray_constants.RAY_ENABLE_UV_RUN_RUNTIME_ENV = False
    try:
        yield
    finally:
        ray_constants.RAY_ENABLE_UV_RUN_RUNTIME_ENV = before


def _cause(error: BaseException) -> str:
    """Ray's message, without the traceback inside it."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return " ".join(dict.fromkeys([lines[0], lines[-1]]))
