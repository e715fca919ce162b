"""What other people could read or run: servers that answer without a password, secrets in files that are shared.

Every function takes plain values and returns within seconds; a server that does not answer is a finding as well.
"""

import http.client
import ipaddress
import json
import ssl
import stat
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

from tune_dlrml.doctor.finding import Finding
from tune_dlrml.system.deadline import answer_in_time
from tune_dlrml.system.urls import passwords_in, without_password

PROBE_TIMEOUT_S = 2.0
OK = 200
DASHBOARD_PATHS = ("/api/jobs/", "/api/version")
MLFLOW_PATH = "/api/2.0/mlflow/experiments/search"
MLFLOW_REMEDY = (
    "start it with --app-name basic-auth behind TLS, or with --host 127.0.0.1 and reach it through an SSH tunnel"
)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect to a page that asks for a password is no open door."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _opener() -> urllib.request.OpenerDirector:
    context = ssl.create_default_context()
    # Nothing secret is sent, and a self-signed certificate must not hide a server that anyone may read.
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return urllib.request.build_opener(
        _NoRedirect, urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
    )


def examine_dashboard(address: str) -> Finding:
    """Whether a Ray dashboard lets anyone run programs on the cluster.

    Args:
        address: Host and port, as `ray.init(...).address_info["webui_url"]` has it.
    """
    base = address if "://" in address else f"http://{address}"
    answers = [_status(f"{base.rstrip('/')}{path}") for path in DASHBOARD_PATHS]
    if OK in answers:
        return Finding(
            "ray dashboard",
            "warning",
            f"{base} answers without a token, so anyone who reaches it can run programs on the cluster; start every "
            "Ray process with RAY_AUTH_MODE=token, and the head with --dashboard-host=127.0.0.1",
        )
    if answers == [None] * len(answers):
        return Finding("ray dashboard", "warning", f"{base} does not answer in {PROBE_TIMEOUT_S:g} s")
    return Finding("ray dashboard", "ok", f"{base} requires a token")


def examine_mlflow(uri: str, addresses: Iterable[str]) -> Finding | None:
    """Whether others can read and change the runs of an MLflow server; None where the URI names no server.

    Args:
        uri: Tracking URI; a password in it is not sent.
        addresses: Addresses at which other machines reach this one, for a server whose URI names this machine only.
    """
    shown = without_password(uri)
    try:
        parts = urlsplit(uri)
        if parts.scheme not in ("http", "https"):
            return None
        status = _mlflow_status(parts, parts.hostname or "")
    except ValueError as error:
        return Finding("mlflow", "error", f"{shown} is not the address of a server ({error}); give http://host:port")
    if status is None:
        text = f"{shown} does not answer in {PROBE_TIMEOUT_S:g} s; a search runs without it and sends the records later"
        return Finding("mlflow", "warning", text)
    if not _is_loopback(parts.hostname or ""):
        return _examine_remote(parts, shown, status)
    for address in addresses:
        if _mlflow_status(parts, address) == OK:
            text = f"{shown} can be reached from other machines at {address} without a password; {MLFLOW_REMEDY}"
            return Finding("mlflow", "warning", text)
    return Finding("mlflow", "ok", f"{shown} is not open to other machines")


def _examine_remote(parts: SplitResult, shown: str, status: int) -> Finding:
    if status == OK:
        text = f"{shown} lets anyone who reaches it read and change runs without a password; {MLFLOW_REMEDY}"
        return Finding("mlflow", "warning", text)
    if parts.scheme == "http":
        text = f"{shown} is used without TLS, so the password can be read in transit; use https, or an SSH tunnel"
        return Finding("mlflow", "warning", text)
    return Finding("mlflow", "ok", f"{shown} requires a password")


def examine_addresses(addresses: Mapping[str, str | None]) -> Iterator[Finding]:
    """A warning for every address in a search-space file that holds a password; it is not shown.

    Args:
        addresses: By their key, as the file has them: `search.study_url`, `tracking.mlflow`.
    """
    remedies = {"search.study_url": "PGPASSFILE or TUNE_DLRML_STUDY_URL", "tracking.mlflow": "MLFLOW_TRACKING_PASSWORD"}
    for key, address in addresses.items():
        if address is not None and passwords_in(address):
            text = "holds a password that anyone who reads the file can see; remove it, and set it by"
            yield Finding(key, "warning", f"{text} {remedies.get(key, 'the environment')}")


def examine_token_file(path: Path) -> Finding | None:
    """Whether others on this machine can read Ray's token; None where there is no such file."""
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError:
        return None
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        text = f"{path} has mode {mode:04o}, so other users can read or change it; run `chmod 600 {path}`"
        return Finding("ray token", "warning", text)
    return Finding("ray token", "ok", f"only its owner can read {path}")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _mlflow_status(parts: SplitResult, host: str) -> int | None:
    """Answer of the MLflow server at `host` to a search of its experiments."""
    shown = f"[{host}]" if ":" in host else host
    port = parts.port or (443 if parts.scheme == "https" else 80)
    url = f"{parts.scheme}://{shown}:{port}{parts.path.rstrip('/')}{MLFLOW_PATH}"
    # MLflow refuses unknown host names, but only a browser is stopped by that: anyone else can send a known one.
    headers = {"Content-Type": "application/json", "Host": f"{parts.hostname}:{port}"}
    return _status(url, json.dumps({"max_results": 1}).encode(), headers)


def _status(url: str, body: bytes | None = None, headers: Mapping[str, str] | None = None) -> int | None:
    """Status with which a server answers; None if there is no answer in time. Redirects are not followed."""

    def ask() -> int | None:
        request = urllib.request.Request(url, body, dict(headers or {}))
        try:
            with _opener().open(request, timeout=PROBE_TIMEOUT_S) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            error.close()
            return error.code
        except (OSError, ValueError, http.client.HTTPException):
            return None

    try:
        return answer_in_time(ask, PROBE_TIMEOUT_S)
    except TimeoutError:
        return None
