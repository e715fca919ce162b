"""What the search loop itself takes: trials per second, and memory of its driver, when no trial does anything.

Run: PYTHONPATH=tests python -m benchmarks.noop [--trials 1000] [--profile FILE]

Everything is real (driver, Tuner, slot, worker group of one worker, mailbox, searcher, scheduler, study in SQLite,
event logs, MLflow) but for the trial: its worker loads no model and reports, without training, what a trial reports at
step 0, at every rung and at its full budget, the objective being a function of the drawn point. TPE draws from four
branches, and successive halving ends three trials in four at the rung.

The rate is that of all trials behind the first, whose end also waits for Ray and for the worker group. Memory is the
resident set of the driver's process, with MLflow's client in it, when a trial ends.
"""

import argparse
import cProfile
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import toy

from benchmarks.results import RESULTS, Row, header, record

TRIALS = 1000
EARLY = 100
"""Trials after which the memory is first looked at."""
STEPS, GRACE_PERIOD, REDUCTION_FACTOR = 8, 2, 4
RATE_GOAL, MEMORY_GOAL = 5.0, 1.3


@dataclass
class Ends:
    """A view of the search that notes when each trial ended, and the driver's resident set then."""

    seconds: list[float] = field(default_factory=list)
    bytes: list[int] = field(default_factory=list)

    processor_s: list[dict[str, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._process = psutil.Process()

    def on_end(self, *_: Any) -> None:
        self.seconds.append(time.monotonic())
        self.bytes.append(self._process.memory_info().rss)
        if (len(self.seconds) - 1) % 100 == 0:
            self.processor_s.append(self._used())

    def _used(self) -> dict[str, float]:
        """Processor seconds of the driver, of its search's thread alone, and of what Ray started below it."""
        used = {"driver": sum(self._process.cpu_times()[:2]), "of it the search's thread": time.thread_time()}
        for process in self._process.children(recursive=True):
            with suppress(psutil.Error):
                name = process.name().partition(".")[0]
                used[name] = used.get(name, 0.0) + sum(process.cpu_times()[:2])
        return used

    def _nothing(self, *_: Any) -> None:
        pass

    on_begin = on_notice = on_start = on_report = on_loss = on_judged = _nothing

    def rate(self, first: int, last: int) -> float:
        """Trials per second between the ends of two of them, counted from 0 in the order in which they ended."""
        return (last - first) / (self.seconds[last] - self.seconds[first])


def document(folder: Path, trials: int) -> dict[str, Any]:
    made = toy.document(
        toy.write_model(folder / "model"),
        toy.write_pairs(folder / "train.jsonl", 64),
        toy.write_pairs(folder / "eval.jsonl", 16, seed=1),
        name="noop",
    )
    made["training"] |= {"max_steps": STEPS}
    made["search"] = {
        "num_trials": trials,
        "scheduler": {"type": "stopping", "grace_period": GRACE_PERIOD, "reduction_factor": REDUCTION_FACTOR},
    }
    return made


def noop_slot() -> type:
    """The search's own slot, whose workers have nothing to load or to train; inside a function, to be pickled whole."""
    from tune_dlrml.records import Report, State, TrialOutcome
    from tune_dlrml.search.tune.slot import TrialSlot

    def metrics(spec: Any, step: int) -> dict[str, float]:
        rate = spec.training.learning_rate
        names = ["train_loss", "train_accuracy", "train_margin", "train_chosen_logps", "train_rejected_logps"]
        names += ["grad_norm", "nonfinite_loss_fraction", "nonfinite_grad_fraction", "tokens", "steps_per_second"]
        names += ["eval_accuracy_se", "eval_margin", "eval_margin_se", "eval_chosen_logps", "eval_rejected_logps"]
        names += ["eval_kl", "eval_trap_fraction", "c", "beta_mix"]
        return dict.fromkeys(names, 0.5) | {"learning_rate": rate, "eval_accuracy": 0.5 + step * min(rate, 0.05)}

    def noop_trial(resident: None, spec: Any, plan: Any, channel: Any, **_: Any) -> TrialOutcome | None:
        for step in (0, *sorted(plan.rungs), plan.steps):
            report = Report(
                number=spec.number,
                step=step,
                timestamp_ms=int(time.time() * 1000),
                metrics=metrics(spec, step),
                evaluated=True,
                rung=step in plan.rungs,
            )
            if not channel.send(report).go_on:
                return None
        return TrialOutcome(spec.number, State.COMPLETE, f"all {plan.steps} steps done", seconds={"waiting": 0.0})

    def noop_trials(config: dict[str, Any]) -> None:
        from tune_dlrml.training import worker

        worker._load = lambda group: None
        worker.train_trial = noop_trial
        worker.train_trials(config, time.time())

    class NoopSlot(TrialSlot):
        def setup(self, config: dict[str, Any], group: Any, keeper: Any = None) -> None:
            from tune_dlrml.search.tune import group as groups

            groups.train_trials = noop_trials
            super().setup(config, group, keeper)

    return NoopSlot


@contextmanager
def slot_of_the_search(slot: type) -> Iterator[None]:
    """Have the driver give Tune another slot."""
    from tune_dlrml.search import driver

    own, driver.TrialSlot = driver.TrialSlot, slot
    try:
        yield
    finally:
        driver.TrialSlot = own


def search(folder: Path, trials: int, profile: cProfile.Profile | None = None) -> Ends:
    """Run a search of no-op trials in this process; what the libraries print goes into a file of its folder."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # as the command line does
    from tune_dlrml.config import parse_config
    from tune_dlrml.search.driver import run_search
    from tune_dlrml.search.preparation import prepare
    from tune_dlrml.search.result import SearchPlace
    from tune_dlrml.system.streams import noise_to

    place, config = SearchPlace(folder / "runs", None, None).of(parse_config(document(folder, trials), source="noop"))
    prepared, ends = prepare(config, place), Ends()
    with noise_to(folder / "noise.log", sys.stdout), slot_of_the_search(noop_slot()):
        if profile is not None:
            profile.enable()
        result = run_search(prepared, ends)
        if profile is not None:
            profile.disable()
    assert len(result.rows) == len(ends.seconds) == trials, f"{len(ends.seconds)} of {trials} trials have ended"
    assert result.untracked == 0, f"{result.untracked} events were not logged to MLflow"
    return ends


def rows(trials: int = TRIALS, profile: cProfile.Profile | None = None) -> tuple[list[Row], dict[str, Any]]:
    """The rows `noop_rate` and `noop_memory`, and every trial's end; prints both for each hundred trials."""
    with tempfile.TemporaryDirectory(prefix="noop_") as name:
        ends = search(Path(name), trials, profile)
    print("trials          trials/s   resident set of the driver")
    hundred = min(100, max(1, trials // 4))
    for last in range(hundred, trials + 1, hundred):
        rate = ends.rate(max(0, last - hundred - 1), last - 1)
        print(f"{last - hundred:>5} to {last:<6} {rate:>8.2f}   {ends.bytes[last - 1] / 2**20:>8.1f} MiB")
    gaps = [after - before for before, after in zip(ends.seconds, ends.seconds[1:], strict=False)]
    print(f"between two ends: median {statistics.median(gaps) * 1000:.0f} ms, longest {max(gaps):.2f} s")
    _print_processor_time(ends.processor_s)
    early = min(EARLY, max(1, trials // 10))
    rate, memory = ends.rate(0, trials - 1), [ends.bytes[last] / 2**20 for last in (early - 1, trials - 1)]
    found = [
        Row.judged("noop_rate", ours=rate, other=RATE_GOAL, ratio=rate, goal=RATE_GOAL, unit="trials/s"),
        Row.judged("noop_memory", ours=memory[1], other=memory[0], goal=MEMORY_GOAL, better="lower", unit="MiB"),
    ]
    return found, {"ends_s": ends.seconds, "resident_bytes": ends.bytes, "processor_s": ends.processor_s}


def _print_processor_time(used: list[dict[str, float]]) -> None:
    """Which processes the trials between the first and the last look kept busy."""
    if len(used) < 2:
        return
    first, last, trials = used[0], used[-1], 100 * (len(used) - 1)
    print("processor time of a trial")
    spent = {name: (last[name] - first.get(name, 0.0)) / trials * 1000 for name in last}
    for name, each in sorted(spent.items(), key=lambda item: -item[1]):
        if each >= 0.5:
            print(f"{each:>7.1f} ms  {name}")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=TRIALS)
    parser.add_argument("--profile", type=Path, default=None, help="Write cProfile's numbers of the driver's thread.")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args(argv)
    profile = None if arguments.profile is None else cProfile.Profile()
    measured_on = header(dtype="none", threads=1)
    found, raw = rows(arguments.trials, profile)
    record("noop", found, raw, measured_on=measured_on, folder=arguments.results)
    if profile is not None:
        profile.dump_stats(arguments.profile)
    return 0


if __name__ == "__main__":
    sys.exit(main())
