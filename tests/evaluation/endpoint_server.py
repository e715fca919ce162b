"""An OpenAI-compatible server on loopback that does to each request what a test wants done to it."""

import json
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

LONGEST_S = 60.0
"""A request is kept waiting until the client has gone; this ends it where nobody closes the server."""


@dataclass(frozen=True)
class Act:
    """What is done to one request.

    Attributes:
        name: For tables.
        body: With its length in the headers, whatever part of it is sent.
        sent: Bytes of the body that are sent before the connection is reset; None sends it all.
        late: Send nothing, and close when the client has gone.
    """

    name: str
    body: bytes = b""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    sent: int | None = None
    late: bool = False


def completion(text: str | None, *, finish_reason: str = "stop", usage: int | None = 10, **choice: Any) -> bytes:
    """The body of a reply; `choice` adds to its only choice."""
    message = {"role": "assistant", "content": text}
    document: dict[str, Any] = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 0,
        "model": "scripted",
        "choices": [{"index": 0, "message": message, "finish_reason": finish_reason, **choice}],
    }
    if usage is not None:
        document["usage"] = {"prompt_tokens": usage - 1, "completion_tokens": 1, "total_tokens": usage}
    return json.dumps(document).encode()


def says(text: str, name: str = "ok", **details: Any) -> Act:
    return Act(name, completion(text, **details))


def fails(
    status: int, *, message: str = "no", code: str | None = None, param: str | None = None, **headers: str
) -> Act:
    """A status that is no success; `headers` as in `retry_after="3"`."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    body = json.dumps({"error": {"message": message, "code": code, "param": param, "type": "test"}}).encode()
    return Act(f"{status}{' with Retry-After' if 'retry-after' in named else ''}", body, status, named)


def truncated(text: str) -> Act:
    """JSON that stops in the middle, in a reply that is whole."""
    body = completion(text)
    return Act("truncated JSON", body[: body.index(b"finish_reason")])


def reset(text: str) -> Act:
    """The connection is reset when half of the body is sent."""
    body = completion(text)
    return Act("reset in the body", body, sent=len(body) // 2)


LATE = Act("timeout", late=True)
EMPTY = Act("empty body")
NO_CHOICES = Act("no choices", b'{"choices": []}')


class EndpointServer:
    """Serves until it is left as a context.

    Args:
        act: What is done to the request with these messages; called in the request's thread.
    """

    def __init__(self, act: Callable[[list[dict[str, str]]], Act]) -> None:
        self.requests: list[dict[str, Any]] = []
        """Body and headers of every request, as they came."""
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.owner = self
        self._act = act
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})

    @classmethod
    def scripted(cls, acts: Iterable[Act]) -> Self:
        """One act a request; there must be as many as requests come."""
        rest = deque(acts)
        return cls(lambda _: rest.popleft())

    @classmethod
    def replying(cls, reply: Callable[[list[dict[str, str]]], str]) -> Self:
        """Every request is answered with what `reply` says to its messages."""
        return cls(lambda messages: says(reply(messages)))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/v1"

    def act(self, body: dict[str, Any], headers: Mapping[str, str], path: str) -> Act:
        with self._lock:
            self.requests.append({"body": body, "headers": dict(headers), "path": path})
            return self._act(body["messages"])

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = False  # joined by server_close
    request_queue_size = 64
    owner: EndpointServer

    def __init__(self, *arguments: Any) -> None:
        self.closing = threading.Event()
        self.to_reset: set[socket.socket] = set()
        super().__init__(*arguments)

    def shutdown_request(self, request: Any) -> None:
        if request in self.to_reset:  # closed without the FIN that an orderly end begins with
            self.to_reset.discard(request)
            self.close_request(request)
        else:
            super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that have gone are part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        act = self.server.owner.act(body, {name.lower(): value for name, value in self.headers.items()}, self.path)
        if act.late:
            self.server.closing.wait(LONGEST_S)
            return
        self.send_response(act.status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(act.body))}.items():
            self.send_header(name, value)
        for name, value in act.headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(act.body[: act.sent])
        if act.sent is not None:
            self.wfile.flush()
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.server.to_reset.add(self.connection)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing on the terminal."""
