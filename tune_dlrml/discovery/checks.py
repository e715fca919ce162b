"""The cheap questions about a proposal, asked in a process that can do no harm and has a limit on everything.

One process imports torch and then forks a child for each proposal, so that neither the caller, which may have threads,
nor the proposal waits for an import. All that passes between them is JSON: of what comes back nothing is run.
"""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Self

from pydantic import TypeAdapter

from tune_dlrml.errors import TuneDlrmlError
from tune_dlrml.losses.base import Loss
from tune_dlrml.losses.custom.config import WrittenLoss

START_S = 120.0
"""Within which the process has imported torch."""
PATIENCE = 5
"""Seconds that are waited for an answer for each second that a check has."""
ROUNDING = 1e-9
"""Least difference that is shown between two ways to write one function."""
_MAIN = "import sys; sys.path[:] = sys.argv[1:]; from tune_dlrml.discovery.check_process import serve; serve()"
_ENVIRONMENT = {
    **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"),
    "CUDA_VISIBLE_DEVICES": "",
    "PYTHONDONTWRITEBYTECODE": "1",
}


class CheckerGoneError(TuneDlrmlError):
    """The process that checks proposals could not be started, or has ended."""


@dataclass(frozen=True)
class Found:
    """A property of a proposal, as `losses.custom.validation` says it."""

    check: str
    level: str
    text: str


@dataclass(frozen=True)
class Findings:
    """What the cheap questions found, in plain numbers.

    Attributes:
        refusal: Why it cannot be trained with; None if it can.
        double: The known loss that it is, such as `discopop(tau=0.07)`; None if it is new.
        off: Largest difference of its slopes from those of its double, where both start with 1/2.
        found: Properties over the box of its scalars.
        slope: dL/dz at z = 0, in the middle of the box; None where it could not be taken.
        trap: z of a local minimum below the start, in the middle of the box; None without one.
        barrier: z of the local maximum above it.
        bounded: Whether the slope is bounded there.
        coupled: Whether a pair's loss depends on the others of its batch.
        processor_s: Seconds of processor time that the child took.
    """

    refusal: str | None = None
    double: str | None = None
    off: float | None = None
    found: tuple[Found, ...] = ()
    slope: float | None = None
    trap: float | None = None
    barrier: float | None = None
    bounded: bool | None = None
    coupled: bool | None = None
    processor_s: float = 0.0

    @property
    def passed(self) -> bool:
        """Whether it can be trained with and is new."""
        return self.refusal is None and self.double is None

    def sentences(self) -> list[str]:
        """What a proposer is told: the reason of a refusal, the double, or every warning."""
        if self.refusal is not None:
            return [self.refusal]
        if self.double is not None:
            return [f"same as {self.double} within {max(self.off or 0.0, ROUNDING):.0e}"]
        return [each.text for each in self.found if each.level == "warning"]


@dataclass(frozen=True)
class Limits:
    """Of one check.

    Attributes:
        seconds: Of processor time; on a busy machine a check may take three times as long.
        mebibytes: Of memory beyond what torch takes.
    """

    seconds: float = 20.0
    mebibytes: int = 1024


_FINDINGS: TypeAdapter[Findings] = TypeAdapter(Findings)


@dataclass
class Checker:
    """Asks the cheap questions, one proposal at a time; a context manager that ends its process.

    Threads may share it. A process that has ended is started again at the next question.
    """

    limits: Limits = Limits()
    _process: "subprocess.Popen[bytes] | None" = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Start the process, so that the first check does not wait for it.

        Raises:
            CheckerGoneError: It does not start.
        """
        with self._lock:
            self._started()

    def check(self, loss: WrittenLoss, known: Mapping[str, Loss]) -> Findings:
        """Whether a proposal can be trained with and is new.

        Args:
            loss: The proposal; its scalars may hold domains.
            known: Earlier proposals and other losses, by the names that they are to be called by.

        Raises:
            CheckerGoneError: The process cannot be started, or ended without an answer.
        """
        request = {
            "loss": loss.model_dump(mode="json"),
            "known": {name: other.model_dump(mode="json") for name, other in known.items()},
            "seconds": self.limits.seconds,
            "mebibytes": self.limits.mebibytes,
        }
        with self._lock:
            process = self._started()
            answer = _asked(process, request, PATIENCE * self.limits.seconds)
            if answer is None:
                self._end()
                raise CheckerGoneError("the process that checks proposals has ended; the next check starts it again")
        return _FINDINGS.validate_python(answer)

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self._end()

    def _started(self) -> "subprocess.Popen[bytes]":
        if self._process is not None and self._process.poll() is None:
            return self._process
        self._process = subprocess.Popen(
            [sys.executable, "-c", _MAIN, *sys.path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=_ENVIRONMENT,
            start_new_session=True,
        )
        if _line(self._process, START_S) is None:
            self._end()
            raise CheckerGoneError("the process that checks proposals does not start; is torch installed?")
        return self._process

    def _end(self) -> None:
        if self._process is None:
            return
        with suppress(ProcessLookupError):  # the group has the process and the child that it may have
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.communicate()
        self._process = None


def _asked(process: "subprocess.Popen[bytes]", request: Mapping[str, Any], seconds: float) -> dict[str, Any] | None:
    assert process.stdin is not None
    try:
        process.stdin.write(json.dumps(request).encode() + b"\n")
        process.stdin.flush()
    except OSError:
        return None
    return _line(process, seconds)


def _line(process: "subprocess.Popen[bytes]", seconds: float) -> dict[str, Any] | None:
    """The next line of the process; None if it ends, or takes longer, in which case it is ended."""
    assert process.stdout is not None
    timer = threading.Timer(seconds, process.kill)
    timer.start()
    try:
        line = process.stdout.readline()
        answer: dict[str, Any] = json.loads(line)
        return answer
    except ValueError:
        return None
    finally:
        timer.cancel()
