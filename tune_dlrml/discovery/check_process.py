"""The process that checks proposals: it reads a request a line, and forks a child that answers it.

A child has a time, a memory, no environment, no way to open a file or a socket, and a hook that ends what tries to.
It is forked from a process without threads that has torch imported and known losses evaluated.
"""

import gc
import json
import math
import os
import resource
import selectors
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch

from tune_dlrml.discovery import novelty
from tune_dlrml.errors import InputError, headline
from tune_dlrml.losses.custom.build import Custom, raising_input_errors
from tune_dlrml.losses.custom.config import WrittenLoss
from tune_dlrml.losses.custom.validation import observed, trainable
from tune_dlrml.losses.proposed.config import ProposedLoss
from tune_dlrml.losses.registry import LOSSES
from tune_dlrml.space import loss_at

WAITING = 3
"""Seconds that are waited for a child for each second of processor time that it has."""
LARGEST_ANSWER = 64 * 2**20
"""Bytes that are read of a child."""
HARMLESS = {"builtins.id", "sys._getframe", "object.__getattr__"}
"""Audit events of Python that computing causes."""
WARM_UP = "def warm(pairs, *, beta):\n    return F.softplus(-beta * pairs.margin_B)"


def serve() -> None:
    """Answer requests until there are no more."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    torch.set_num_threads(1)
    torch.set_num_interop_threads(1)
    _examined(ProposedLoss.model_validate({"code": WARM_UP, "params": {"beta": 0.1}}), {})
    gc.freeze()
    _send(answers, {"ready": True})
    for line in sys.stdin.buffer:
        request = json.loads(line)
        answer = _in_child(request)
        novelty.remembered.update(answer.pop("remembered", {}))
        _send(answers, answer)


def _send(answers: Any, answer: Mapping[str, Any]) -> None:
    answers.write(json.dumps(answer).encode() + b"\n")
    answers.flush()


def _in_child(request: dict[str, Any]) -> dict[str, Any]:
    """What a child answers, or why it did not."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        _answer(request, writer)
    os.close(writer)
    said = _read(reader, WAITING * request["seconds"])
    os.close(reader)
    if said is None:
        os.kill(child, signal.SIGKILL)
    _, status, used = os.wait4(child, 0)
    try:
        answer = dict(json.loads(said or b""))
    except ValueError:
        answer = {"refusal": _why(said is None, status, request)}
    return answer | {"processor_s": used.ru_utime + used.ru_stime}


def _why(late: bool, status: int, request: Mapping[str, Any]) -> str:
    if late or os.waitstatus_to_exitcode(status) in (-signal.SIGXCPU, -signal.SIGKILL):
        return f"takes longer than the {request['seconds']:g} s of processor time that a check has"
    return "ends the process that checks it; compute with fewer and smaller tensors"


def _read(reader: int, seconds: float) -> bytes | None:
    """All that is written until the other end closes; None if that takes too long or is too much."""
    until, found = time.monotonic() + seconds, bytearray()
    with selectors.DefaultSelector() as selector:
        selector.register(reader, selectors.EVENT_READ)
        while (left := until - time.monotonic()) > 0 and len(found) < LARGEST_ANSWER:
            if selector.select(left):
                piece = os.read(reader, 2**16)
                if not piece:
                    return bytes(found)
                found += piece
    return None


def _answer(request: dict[str, Any], writer: int) -> NoReturn:
    """The life of a child."""
    try:
        _confine(writer, math.ceil(request["seconds"]), request["mebibytes"])
        said = memoryview(json.dumps(_answered(request)).encode())
        while said:
            said = said[os.write(writer, said) :]
    finally:
        os._exit(0)


def _confine(writer: int, seconds: int, mebibytes: int) -> None:
    """Leave the child a time, a memory, and one pipe to write into."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nothing, descriptor)
    os.closerange(3, writer)
    os.closerange(writer + 1, 65536)
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    memory = pages * resource.getpagesize() + mebibytes * 2**20
    limits = {
        resource.RLIMIT_AS: memory,
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NPROC: 0,
        resource.RLIMIT_NOFILE: 0,
    }
    for what, most in limits.items():
        resource.setrlimit(what, (most, most))


def _refuse(event: str, _: Any) -> None:
    if event not in HARMLESS:
        raise InputError(f"a loss computes and does nothing else, but this one leads to {event}")


def _answered(request: Mapping[str, Any]) -> dict[str, Any]:
    before = set(novelty.remembered)
    try:
        loss, known = _compiled(request)
        sys.addaudithook(_refuse)
        answer = _examined(loss, known)
    except InputError as error:
        answer = {"refusal": str(error)}
    except MemoryError:
        answer = {"refusal": f"takes more than the {request['mebibytes']} MiB of memory that a check has"}
    except Exception as error:
        answer = {"refusal": headline(error)}
    new = {key: found for key, found in novelty.remembered.items() if key not in before}
    return answer | {"remembered": new}


def _compiled(request: Mapping[str, Any]) -> tuple[ProposedLoss, dict[str, Any]]:
    """The loss and the known ones, whose functions are compiled before the first of them runs."""
    loss = ProposedLoss.model_validate(request["loss"])
    known = {name: LOSSES[other["name"]].config.model_validate(other) for name, other in request["known"].items()}
    for each in (loss, *known.values()):
        if isinstance(each, ProposedLoss):
            each.loaded()
    return loss, known


def _examined(loss: WrittenLoss, known: Mapping[str, Any]) -> dict[str, Any]:
    """Findings of a loss, as JSON has them; the trap of a coupled one, which takes long, in the middle of its box."""
    first, *others = novelty.points_of(loss)
    built, found = _observed(loss, first)
    for point in others:
        found += _observed(loss, point, seek_trap=not built.batch_coupled)[1]
    answer = {"found": _worst(found), **_shape(built)}
    with raising_input_errors(built.function):
        double = novelty.double(loss, known)
    return answer if double is None else answer | {"double": double.name, "off": double.off}


def _observed(
    loss: WrittenLoss, point: Mapping[str, Any], *, seek_trap: bool = True
) -> tuple[Custom, list[dict[str, Any]]]:
    """The loss at a point, and its properties there."""
    at = ", ".join(f"{key.removeprefix('params.')}={value:.3g}" for key, value in point.items())
    where = f" (at {at})" if at else ""
    try:
        built = trainable(loss_at(loss, point))  # type: ignore[arg-type]  # of the class that it had
        seen = observed(built, seek_trap=seek_trap)
    except InputError as error:
        raise InputError(f"{error}{where}") from None
    return built, [vars(each) | {"text": each.text + (where if each.level == "warning" else "")} for each in seen]


def _worst(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each property the first warning, or that it is in order everywhere."""
    first = {(each["check"], each["level"], each["text"][:12]): each for each in reversed(found)}
    troubled = {check for check, level, _ in first if level == "warning"}
    return [each for each in reversed(first.values()) if each["level"] == "warning" or each["check"] not in troubled]


def _shape(built: Custom) -> dict[str, Any]:
    geometry = built.geometry()
    slope = float(built.curve(torch.zeros(1, dtype=torch.float64))[1][0])
    return {
        "slope": slope if math.isfinite(slope) else None,
        "trap": None if geometry.trap is None else geometry.trap.z,
        "barrier": None if geometry.barrier is None else geometry.barrier.z,
        "bounded": geometry.bounded,
        "coupled": built.batch_coupled,
    }
