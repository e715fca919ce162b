"""The doctor finds servers that answer without a password, and secrets in files that are shared."""

import base64
import http.server
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tune_dlrml.cluster.environment import own_addresses
from tune_dlrml.doctor import exposure
from tune_dlrml.doctor.exposure import (
    examine_addresses,
    examine_dashboard,
    examine_mlflow,
    examine_token_file,
)

ELSEWHERE = "127.0.0.2"
"""Stands for an address at which other machines reach this one; Linux answers at all of 127.0.0.0/8."""
Asked = list[tuple[str, str, dict[str, str]]]


class _Server(http.server.ThreadingHTTPServer):
    answer: Callable[[str], int]
    asked: Asked


class _Handler(http.server.BaseHTTPRequestHandler):
    server: _Server

    def respond(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.asked.append((self.command, self.path, dict(self.headers)))
        self.send_response(self.server.answer(self.path))
        self.send_header("Location", "/login")
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    do_GET = do_POST = respond

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def server(answer: Callable[[str], int], host: str = "127.0.0.1") -> Iterator[tuple[int, Asked]]:
    """A server on loopback that answers every path with a status; yields its port and what it was asked."""
    with _Server((host, 0), _Handler) as running:
        running.answer, running.asked = answer, []
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield running.server_address[1], running.asked
        finally:
            running.shutdown()
            thread.join()


@pytest.fixture
def closed_port() -> int:
    with server(lambda _: 200) as (port, _):
        return port


@pytest.fixture
def silent() -> Iterator[int]:
    """A port that takes connections and never answers."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


# The Ray dashboard.


@pytest.mark.parametrize("open_path", ["/api/jobs/", "/api/version"])
def test_a_dashboard_that_answers_without_a_token_is_reported_with_the_remedy(open_path: str) -> None:
    with server(lambda path: 200 if path == open_path else 404) as (port, _):
        finding = examine_dashboard(f"127.0.0.1:{port}")
    assert finding.level == "warning"
    assert f"http://127.0.0.1:{port} answers without a token" in finding.text
    assert "RAY_AUTH_MODE=token" in finding.text


@pytest.mark.parametrize("status", [401, 403, 302])
def test_a_dashboard_that_wants_a_token_is_in_order(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    with server(lambda path: 200 if path == "/login" else status) as (port, asked):
        assert examine_dashboard(f"http://127.0.0.1:{port}/").level == "ok"
    assert {path for _, path, _ in asked} == {"/api/jobs/", "/api/version"}
    assert not any("Authorization" in headers for _, _, headers in asked)


def test_a_dashboard_that_is_not_there_is_a_finding(closed_port: int) -> None:
    finding = examine_dashboard(f"127.0.0.1:{closed_port}")
    assert (finding.level, "does not answer" in finding.text) == ("warning", True)


def test_a_dashboard_that_keeps_silent_is_a_finding(silent: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exposure, "PROBE_TIMEOUT_S", 0.05)
    assert "does not answer" in examine_dashboard(f"127.0.0.1:{silent}").text


# MLflow.


def test_a_tracking_store_that_is_no_server_is_not_asked() -> None:
    assert examine_mlflow("sqlite:///mlflow.db", ["127.0.0.1"]) is None


def test_a_server_on_loopback_alone_is_in_order() -> None:
    with server(lambda _: 200) as (port, _):
        finding = examine_mlflow(f"http://127.0.0.1:{port}", [ELSEWHERE])
    assert finding is not None and finding.level == "ok"


def test_a_server_that_other_machines_reach_without_a_password_is_reported() -> None:
    with server(lambda _: 200, host="0.0.0.0") as (port, asked):
        finding = examine_mlflow(f"http://localhost:{port}", [ELSEWHERE])
    assert finding is not None and finding.level == "warning"
    assert ELSEWHERE in finding.text and "basic-auth" in finding.text
    # Both requests name the host that the server expects, as anyone can.
    assert {headers["Host"] for _, _, headers in asked} == {f"localhost:{port}"}
    assert {(method, path) for method, path, _ in asked} == {("POST", exposure.MLFLOW_PATH)}


def test_a_server_that_wants_a_password_is_in_order_and_is_sent_none() -> None:
    with server(lambda _: 401, host="0.0.0.0") as (port, asked):
        finding = examine_mlflow(f"http://user:secret@127.0.0.1:{port}/mlflow/", [ELSEWHERE])
    assert finding is not None and finding.level == "ok"
    assert "secret" not in finding.text
    assert {path for _, path, _ in asked} == {f"/mlflow{exposure.MLFLOW_PATH}"}
    assert "secret" not in json.dumps(asked) and base64.b64encode(b"user:secret").decode() not in json.dumps(asked)


@pytest.mark.parametrize(("status", "says"), [(200, "lets anyone"), (401, "without TLS")])
def test_a_remote_server_is_a_warning_if_it_is_open_or_its_password_is_sent_in_clear(
    status: int, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exposure, "_is_loopback", lambda _: False)
    with server(lambda _: status) as (port, _):
        finding = examine_mlflow(f"http://127.0.0.1:{port}", [])
    assert finding is not None and finding.level == "warning"
    assert says in finding.text


def test_a_server_that_is_not_there_is_a_finding(closed_port: int) -> None:
    finding = examine_mlflow(f"http://user:secret@127.0.0.1:{closed_port}", [ELSEWHERE])
    assert finding is not None and finding.level == "warning"
    assert "does not answer" in finding.text and "secret" not in finding.text


@pytest.mark.parametrize("uri", ["http://[", "http://127.0.0.1:99999", "http://127.0.0.1:port"])
def test_an_address_that_is_none_is_an_error(uri: str) -> None:
    finding = examine_mlflow(uri, [])
    assert finding is not None and finding.level == "error"


def test_this_machines_addresses_are_those_that_others_may_use() -> None:
    addresses = own_addresses()
    assert not {"127.0.0.1", "::1"} & set(addresses)
    assert all("%" not in address for address in addresses)


# Files.


@pytest.mark.parametrize(
    "address",
    [
        "http://user:secret@host:5000",
        "postgresql://user:secret@host/db",
        "postgresql://user:sec/ret@host/db",
        "postgresql://user@host/db?password=secret",
        "postgresql://user@host/db?sslmode=require&sslpassword=secret",
    ],
)
def test_a_password_in_the_file_is_reported_without_being_shown(address: str) -> None:
    (finding,) = examine_addresses({"search.study_url": None, "tracking.mlflow": address})
    assert (finding.subject, finding.level) == ("tracking.mlflow", "warning")
    assert "MLFLOW_TRACKING_PASSWORD" in finding.text
    assert "sec" not in finding.text


@pytest.mark.parametrize("address", ["http://host:5000", "postgresql://user@host/db", "sqlite:///a.db", "http://[", ""])
def test_an_address_without_a_password_is_no_finding(address: str) -> None:
    assert not list(examine_addresses({"tracking.mlflow": address}))


@pytest.mark.parametrize(("mode", "level"), [(0o600, "ok"), (0o400, "ok"), (0o644, "warning"), (0o660, "warning")])
def test_a_token_that_others_can_read_is_a_warning_with_the_command_that_helps(
    mode: int, level: str, tmp_path: Path
) -> None:
    token = tmp_path / "auth_token"
    token.touch()
    token.chmod(mode)
    finding = examine_token_file(token)
    assert finding is not None and finding.level == level
    assert level == "ok" or f"chmod 600 {token}" in finding.text


def test_without_a_token_file_there_is_no_finding(tmp_path: Path) -> None:
    assert examine_token_file(tmp_path / "auth_token") is None
