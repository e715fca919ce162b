"""How long a trial waits from its hand-over to the end of its first optimizer step, on the toy of 0.1 M parameters.

Run: PYTHONPATH=tests python -m benchmarks.handover [--trials 30] [--naive-trials 5]

Here a trial is handed over when the sampler has drawn it, and all but the first find a warm worker group; the first,
which waits for the group's boot, is shown apart. In naive.py a trial is handed over when Tune has started its actor,
which is later, and every one boots a Ray Train run of its own.
"""

import argparse
from dataclasses import asdict
from pathlib import Path

from benchmarks.results import RESULTS, Row, Spread, header, record
from benchmarks.sides import NAIVE, dtype, run_other, run_ours, working_folder
from benchmarks.sweep import Size, toy_grid
from tune_dlrml.config.loading import parse_config

GOAL, GOAL_S = 40.0, 0.3
STEPS = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=30, help="of this project, at most 32")
    parser.add_argument("--naive-trials", type=int, default=5)
    parser.add_argument("--work", type=Path, help="folder that keeps what both sides write")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    with working_folder(arguments.work) as work:
        size = Size(arguments.trials, STEPS)
        document = toy_grid(work, size, hidden=64, layers=2, rates=[3e-4, 6e-4, 1e-3, 3e-3])
        config = parse_config(document, source="the benchmark")
        measured_on = header(dtype=dtype(config), threads=config.resources.cpus_per_worker)
        ours = run_ours(document, work / "ours")
        fewer = document | {"search": document["search"] | {"num_trials": arguments.naive_trials}}
        naive = run_other(NAIVE, fewer, work / "naive")
    warm = Spread.of(trial.handover_s for trial in ours.trials[1:])
    cold = Spread.of(trial.handover_s for trial in naive.trials)
    print("seconds from the hand-over to the end of the first step")
    print(f"  first trial, with the group's boot   {ours.trials[0].handover_s:.2f}")
    print(f"  later trials, goal <= {GOAL_S}            {warm}")
    print(f"  trials of naive.py                   {cold}")
    row = Row.judged("handover", ours=warm.median, other=cold.median, goal=GOAL, unit="s")
    raw = {"ours": asdict(ours), "naive": asdict(naive)}
    record("handover", [row], raw, measured_on=measured_on, folder=arguments.results)


if __name__ == "__main__":
    main()
