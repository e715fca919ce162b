"""Configurations and data files with a mistake in each, made by hand and by chance: all must be refused at once.

A case is refused rightly if the command line exits with 2 and one message that names file and key or line, with no
traceback, and has neither started Ray nor written anything. A chance mutation that happens to be legal does not count.
"""

import io
import os
import random
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import toy

from faults.bad_cases import Case, hand_made
from faults.bad_chance import chance_cases
from tune_dlrml.cli.main import main

PROGRAM = Path(sys.executable).with_name("tune-dlrml")
CHANCE, CHANCE_SHORT = 220, 20
"""Mutations by chance; about one in five is legal."""
EVERY_NTH = 15
"""Of so many cases one is also run as a process of its own."""
SHOWN = 5


class _Accepted(Exception):
    """The search would start now."""


@dataclass(frozen=True)
class _End:
    code: int
    out: str
    err: str
    accepted: bool = False


def run(*, short: bool = False, seed: int = 0) -> dict[str, Any]:
    """Try every case in this process, and some of them as processes of their own."""
    offenders: list[str] = []
    tried = 0
    with tempfile.TemporaryDirectory(prefix="bad_input_") as name:
        root = Path(name)
        model = toy.write_model(root / "model")
        for index, case in enumerate(_cases(model, short, seed)):
            folder = root / f"case_{index}"
            case.write(folder)
            ends = [_in_process(case, folder)]
            if case.by_chance and ends[0].accepted:
                continue
            if index % EVERY_NTH == 0:
                ends.append(_as_process(case, folder))
            tried += 1
            wrong = [why for end in ends for why in _wrong(case, end, folder)]
            if wrong:
                offenders.append(f"{case.name}: {'; '.join(wrong)}")
    detail = "every one refused with file and key or line, before anything was started or written"
    if offenders:
        detail = "\n".join(offenders[:SHOWN] + ([f"and {len(offenders) - SHOWN} more"] if offenders[SHOWN:] else []))
    return {"name": "bad_input", "tried": tried, "failed": len(offenders), "detail": detail}


def _cases(model: Path, short: bool, seed: int) -> Iterator[Case]:
    cases = list(hand_made(model))
    yield from random.Random(seed).sample(cases, 25) if short else cases
    yield from chance_cases(model, CHANCE_SHORT if short else CHANCE, seed)


def _wrong(case: Case, end: _End, folder: Path) -> Iterator[str]:
    """Everything that is wrong with how a case was answered."""
    if end.accepted:
        yield "was accepted"
        return
    if end.code != 2:
        yield f"exit {end.code} instead of 2"
    if "Traceback" in end.out + end.err:
        yield f"a traceback: {end.err.strip().splitlines()[-1]}"
    for words in case.says:
        if words not in end.err:
            yield f"{words!r} is not in the message: {end.err[:300]!r}"
    if not end.err.strip():
        yield "no message"
    if len(end.err) > 4000:
        yield f"a message of {len(end.err)} characters"
    if list((folder / "runs").rglob("*")):
        yield f"files were written: {[path.name for path in (folder / 'runs').rglob('*')][:3]}"


def _in_process(case: Case, folder: Path) -> _End:
    out, err = io.StringIO(), io.StringIO()
    code, accepted = 0, False
    with _guarded(), redirect_stdout(out), redirect_stderr(err):
        sys.argv = ["tune-dlrml", *case.arguments(folder)]
        try:
            main()
        except _Accepted:
            accepted = True
        except SystemExit as end:
            code = int(end.code or 0)
        except Exception as error:
            code = 1
            err.write(f"Traceback of {type(error).__name__}: {error}")
    return _End(code, out.getvalue(), err.getvalue(), accepted)


@contextmanager
def _guarded() -> Iterator[None]:
    """The command line in this process: its arguments and signals are put back, and a search never begins."""
    from tune_dlrml.search import preparation

    really = preparation.prepare

    def prepare(*arguments: Any) -> None:
        really(*arguments)
        raise _Accepted

    handler = signal.getsignal(signal.SIGTERM)
    environment = {name: value for name, value in os.environ.items() if name not in _OUTER}
    with (
        mock.patch.object(sys, "argv"),
        mock.patch.dict(os.environ, environment, clear=True),
        mock.patch.object(preparation, "prepare", prepare),
        mock.patch("ray.init", _not_to_be_called("Ray was started")),
    ):
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, handler)


_OUTER = {"RAY_ADDRESS", "TUNE_DLRML_STUDY_URL"}
"""What a session around this one may have set, and would change the answers."""


def _not_to_be_called(why: str) -> Callable[..., None]:
    def called(*_: Any, **__: Any) -> None:
        raise AssertionError(why)

    return called


def _as_process(case: Case, folder: Path) -> _End:
    temporary = folder / "tmp"
    temporary.mkdir()
    environment = {name: value for name, value in os.environ.items() if name not in _OUTER}
    ended = subprocess.run(
        [str(PROGRAM), *case.arguments(folder)],
        env=environment | {"TMPDIR": str(temporary)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    sessions = list(temporary.glob("ray*"))
    return _End(ended.returncode, ended.stdout, ended.stderr + (" Traceback: Ray was started" if sessions else ""))
