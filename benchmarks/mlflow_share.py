"""What share of the quickstart's wall time goes to MLflow.

Run: PYTHONPATH=tests python -m benchmarks.mlflow_share [--trials N] [--space search_spaces/quickstart.yaml]

Runs the search in this process and counts two things:

- waiting: wall seconds in which the driver's main thread is inside the tracker or asks how far MLflow is. The first
  answer of a new MLflow, the making of its tables and the close at the end are part of it.
- working: processor seconds of the tracker's thread, while the main thread does not wait for it. The thread trains
  nothing and the workers are other processes, so these seconds cost the search at most what they take from a worker
  that would have had the processor; they are counted in full.

The share is their sum over the wall time of `run_search`. It is an upper bound, since a driver's wait for MLflow delays
training only where a worker waits for the driver. Beside it stands the share of the time between the first report and
the last trial's end, into which neither the making of tables nor the start of Ray falls. What importing MLflow takes is
no logging, and is printed apart.
"""

import argparse
import functools
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.results import RESULTS, Row, header, record

GOAL = 0.02
SPACE = Path(__file__).parents[1] / "search_spaces" / "quickstart.yaml"
WAITS = ("__init__", "describe_search", "notify", "run_id", "close", "leave")
"""Methods of the tracker that the driver calls."""
NOTE = "note of the run's id"
PER_REPORT = ("notify", "run_id", NOTE)
"""Waits while trials train; the others come before and after."""


@dataclass
class Meter:
    """Wall seconds of the main thread inside MLflow's part of this project, and the tracker thread's own clock."""

    waited_s: dict[str, float] = field(default_factory=dict)
    worked_meanwhile_s: float = 0.0
    thread: threading.Thread | None = None
    left_s: float = 0.0
    """The tracker thread's processor time when it ended."""
    _depth: int = 0

    def waiting(self, call: Callable[..., Any], name: str) -> Callable[..., Any]:
        """The same call, timed where the main thread makes it."""

        @functools.wraps(call)
        def timed(*args: Any, **kwargs: Any) -> Any:
            if threading.current_thread() is not threading.main_thread() or self._depth:
                return call(*args, **kwargs)
            self._depth += 1
            began, worked = time.perf_counter(), self.worked_s
            try:
                return call(*args, **kwargs)
            finally:
                self._depth -= 1
                self.waited_s[name] = self.waited_s.get(name, 0.0) + time.perf_counter() - began
                self.worked_meanwhile_s += self.worked_s - worked

        return timed

    def working(self, work: Callable[..., None]) -> Callable[..., None]:
        """The body of the tracker's thread, whose clock is read until it ends."""

        @functools.wraps(work)
        def timed(*args: Any) -> None:
            self.thread = threading.current_thread()
            try:
                work(*args)
            finally:
                self.left_s, self.thread = time.thread_time(), None

        return timed

    @property
    def worked_s(self) -> float:
        """Processor seconds of the tracker's thread until now."""
        thread = self.thread
        if thread is None or thread.ident is None:
            return self.left_s
        try:
            return time.clock_gettime(time.pthread_getcpuclockid(thread.ident))
        except OSError:  # it ended meanwhile
            return self.left_s

    @property
    def seconds(self) -> float:
        """Waiting and working, nothing twice."""
        return sum(self.waited_s.values()) + self.worked_s - self.worked_meanwhile_s


@dataclass
class Ends:
    """A view that notes when the first trial reported and the last one ended."""

    first_report: float = 0.0
    last_end: float = 0.0
    trials: int = 0

    def on_report(self, *_: Any) -> None:
        self.first_report = self.first_report or time.perf_counter()

    def on_end(self, *_: Any) -> None:
        self.last_end, self.trials = time.perf_counter(), self.trials + 1

    def _nothing(self, *_: Any) -> None:
        pass

    on_begin = on_notice = on_start = on_loss = on_judged = _nothing


@contextmanager
def metered() -> Iterator[Meter]:
    """Wrap what the driver calls of MLflow's part; nothing in the package changes."""
    from tune_dlrml.search import books, driver
    from tune_dlrml.tracking.tracker import Tracker

    meter = Meter()
    with ExitStack() as stack:
        for name in WAITS:
            stack.enter_context(mock.patch.object(Tracker, name, meter.waiting(getattr(Tracker, name), name)))
        stack.enter_context(mock.patch.object(Tracker, "_work", meter.working(Tracker._work)))
        stack.enter_context(mock.patch.object(driver, "untracked", meter.waiting(driver.untracked, "untracked")))
        note = books.Books._note_run
        stack.enter_context(mock.patch.object(books.Books, "_note_run", meter.waiting(note, NOTE)))
        yield meter


def search(folder: Path, space: Path, trials: int | None) -> tuple[Meter, Ends, float]:
    """Run a search in this process, for its wall time in seconds; what libraries print goes into a file."""
    from tune_dlrml.config import load_config
    from tune_dlrml.search.driver import run_search
    from tune_dlrml.search.preparation import prepare
    from tune_dlrml.search.result import SearchPlace
    from tune_dlrml.system.streams import noise_to

    config = load_config(space, [] if trials is None else [f"search.num_trials={trials}"])
    place, config = SearchPlace(folder / "runs").of(config)
    prepared, ends = prepare(config, place), Ends()
    with noise_to(folder / "noise.log", sys.stdout), metered() as meter:
        began = time.perf_counter()
        result = run_search(prepared, ends)
        wall = time.perf_counter() - began
    assert ends.trials == len(result.rows), f"{ends.trials} of {len(result.rows)} trials have ended"
    assert result.untracked == 0, f"{result.untracked} events were not logged to MLflow"
    return meter, ends, wall


def rows(space: Path = SPACE, trials: int | None = None) -> tuple[list[Row], dict[str, Any]]:
    """The row `mlflow_share`, and its parts; prints them."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # as the command line does
    began = time.perf_counter()
    import mlflow  # noqa: F401  # for the time that it takes

    imported_s = time.perf_counter() - began
    with tempfile.TemporaryDirectory(prefix="mlflow_share_") as name:
        meter, ends, wall = search(Path(name), space, trials)
    training = ends.last_end - ends.first_report
    print(f"{space.stem}, {ends.trials} trials: {wall:.1f} s, {training:.1f} s of them from first report to last end")
    for part, seconds in sorted(meter.waited_s.items(), key=lambda item: -item[1]):
        print(f"  main thread in {part:<22} {seconds:>8.3f} s")
    working = meter.worked_s - meter.worked_meanwhile_s
    print(f"  tracker's thread, processor   {working:>8.3f} s")
    print(f"  the same while it is waited for {meter.worked_meanwhile_s:.3f} s, not counted again")
    within = (working + sum(meter.waited_s.get(part, 0.0) for part in PER_REPORT)) / training
    print(f"  share {meter.seconds / wall:.2%} of the search, {within:.2%} between first report and last end")
    print(f"  importing MLflow, not counted {imported_s:>8.3f} s")
    row = Row.judged("mlflow_share", ours=meter.seconds, other=wall, goal=GOAL, better="lower", unit="s")
    raw = {"waited_s": meter.waited_s, "worked_s": working, "training_s": training, "import_s": imported_s}
    return [row], raw


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", type=Path, default=SPACE)
    parser.add_argument("--trials", type=int, default=None, help="instead of the file's")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args(argv)
    measured_on = header(dtype="bfloat16")
    found, raw = rows(arguments.space, arguments.trials)
    record("mlflow_share", found, raw, measured_on=measured_on, folder=arguments.results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
