"""Which cluster is joined, and where one of this machine's own keeps its token."""

import gc
import socket
import threading
import time
import weakref
from types import SimpleNamespace

import pytest

from tune_dlrml.cluster import joining
from tune_dlrml.cluster.joining import joined
from tune_dlrml.errors import InputError


@pytest.fixture
def hurry(monkeypatch):
    """Ray is never asked to join, and nothing is waited for longer than a second."""
    monkeypatch.setattr(joining, "KNOCK_S", 0.3)
    monkeypatch.setattr(joining, "ANSWER_S", 0.3)
    monkeypatch.setattr(joining, "PAUSE_S", 0.05)
    monkeypatch.setattr("ray.init", lambda **options: pytest.fail("Ray was asked to join"))


@pytest.fixture
def silent():
    """A port that takes connections and is no Ray."""
    with socket.create_server(("", 0)) as listening:  # Ray goes to this machine's address for 127.0.0.1
        yield listening.getsockname()[1]


@pytest.fixture
def closed():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    return port


@pytest.mark.parametrize(
    ("address", "cause"),
    [
        ("http://head:8265", "address of a dashboard"),
        ("https://head", "address of a dashboard"),
        ("ray://head:10001", "or of a client"),
        ("tcp://head:6379", "host:port of a cluster's head is needed"),
        ("head", "Invalid address format"),
        ("6379", "Invalid address format"),
        ("head:", "port"),
        ("head:ray", "port"),
        ("127.0.0.1:80", "port 80"),
        ("127.0.0.1:99999", "port 99999"),
        ("no-such-host.invalid:6379", "no-such-host.invalid:6379"),
        ("127.0.0.1:{closed}", "Connection refused"),
        ("localhost:{closed}", "Connection refused"),
        ("127.0.0.1:{silent}", "not Ray"),
    ],
)
def test_an_address_at_which_no_cluster_answers_is_reported_within_seconds(hurry, silent, closed, address, cause):
    began = time.monotonic()
    with pytest.raises(InputError, match=r"^RAY_ADDRESS: ") as caught:
        joined(address.format(silent=silent, closed=closed))
    assert cause in str(caught.value)
    assert time.monotonic() - began < 10


def test_a_head_that_is_just_starting_is_waited_for(hurry, monkeypatch, silent):
    attempts = []

    def knock(place, timeout):
        attempts.append(place)
        if len(attempts) < 4:
            raise ConnectionRefusedError(111, "Connection refused")
        return SimpleNamespace(close=lambda: None)

    monkeypatch.setattr("socket.create_connection", knock)
    joining._knock("head", 6379)
    assert attempts == [("head", 6379)] * 4


def test_the_name_of_ours_is_not_blamed_where_the_own_cluster_does_not_start(monkeypatch, tmp_path):
    def init(**options):
        raise OSError("validate_socket_filename failed: too long")

    monkeypatch.setattr("ray.init", init)
    with (
        pytest.raises(InputError, match=r"^Ray must start on this machine, but: validate_socket_filename") as caught,
        joining.own_cluster(tmp_path),
    ):
        pass
    assert "RAY_ADDRESS" not in str(caught.value)


@pytest.mark.parametrize("home", ["/nonexistent", "/proc", "/", "empty", "with an empty token"])
def test_without_a_token_of_the_user_the_cluster_gets_one_of_its_own(tmp_path, monkeypatch, home):
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "home"
    (folder / ".ray").mkdir(parents=True)
    if home == "with an empty token":
        (folder / ".ray" / "auth_token").touch()
    monkeypatch.setenv("HOME", home if home.startswith("/") else str(folder))
    token = tmp_path / "auth_token"
    assert joining._token(tmp_path) == {"RAY_AUTH_TOKEN_PATH": str(token)}
    assert token.stat().st_mode & 0o777 == 0o600 and len(token.read_text()) == 64


@pytest.mark.parametrize("where", ["home", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_TOKEN"])
def test_a_token_of_the_user_stays_in_use(tmp_path, monkeypatch, where):
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    file = tmp_path / "home" / ".ray" / "auth_token"
    file.parent.mkdir(parents=True)
    file.write_text("0" * 64)
    monkeypatch.setenv("HOME", str(tmp_path / "home") if where == "home" else "/nonexistent")
    if where.startswith("RAY"):
        monkeypatch.setenv(where, str(file) if where.endswith("PATH") else "0" * 64)
    assert joining._token(tmp_path) == {} and not (tmp_path / "auth_token").exists()


def test_a_token_file_that_is_named_and_missing_is_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "nowhere"))
    with pytest.raises(
        InputError, match=r"RAY_AUTH_TOKEN_PATH is set but file cannot be opened or is empty: .*nowhere"
    ):
        joining._token(tmp_path)


@pytest.mark.parametrize(
    "command",
    [
        ["uv", "run", "tune-dlrml", "search", "space.yaml"],
        ["/home/user/.local/bin/uv", "run", "--no-project", "python", "-m", "tune_dlrml"],
        ["uv", "run", "--active", "--with", "pandas", "jupyter", "lab"],
        ["uv", "run", "--directory", "elsewhere", "-m", "tune_dlrml"],
    ],
)
def test_ray_leaves_the_workers_as_they_are_where_the_driver_was_started_by_uv_run(monkeypatch, tmp_path, command):
    from ray._private import worker

    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    monkeypatch.setattr("psutil.Process.parents", lambda self: [SimpleNamespace(cmdline=lambda: command)])
    seen = []
    monkeypatch.setattr("ray.init", lambda **options: seen.append(worker._maybe_modify_runtime_env({}, False)))
    with joining.own_cluster(tmp_path):
        pass
    assert seen == [{}]


def test_what_lies_in_cycles_is_freed_before_ray_is_left_and_nothing_meanwhile(monkeypatch):
    class Handle:
        pass

    handle = Handle()
    handle.own = handle
    freed, seen = [], []
    weakref.finalize(handle, lambda: freed.append(threading.current_thread()))
    monkeypatch.setattr("ray.shutdown", lambda: seen.append((list(freed), gc.isenabled())))
    del handle
    joining.leave_ray()
    assert seen == [([threading.main_thread()], False)] and gc.isenabled()
