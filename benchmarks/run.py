"""Run the benchmarks of speed, one after another, and show all results. Takes hours on two cores.

Run: make bench, or PYTHONPATH=tests python -m benchmarks.run [--only sweep_toy,handover] [--repeats N]

Each bench is a program of its own that leaves its rows in results/latest.json, so one that fails or is left out costs
the others nothing: their newest rows stay. The machine should have nothing else to do. `--repeats` goes to the benches
that can measure more often; the others repeat by themselves.
"""

import argparse
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.results import RESULTS, latest, show


@dataclass(frozen=True)
class Bench:
    """One module and how it is called."""

    module: str
    arguments: tuple[str, ...] = ()
    repeats: bool = False

    def command(self, results: Path, repeats: int | None) -> list[str]:
        more = [] if repeats is None or not self.repeats else ["--repeats", str(repeats)]
        return [sys.executable, "-m", f"benchmarks.{self.module}", *self.arguments, "--results", str(results), *more]


BENCHES = {
    "power": Bench("power"),
    "handover": Bench("handover"),
    "reference_tokens": Bench("reference_tokens"),
    "race": Bench("race"),
    "noop": Bench("noop"),
    "mlflow_share": Bench("mlflow_share"),
    "shared_prompt": Bench("shared_prompt", repeats=True),
    "limit": Bench("limit", repeats=True),
    "sweep_toy": Bench("sweep", ("--only", "sweep_toy"), repeats=True),
    "sweep_smollm2": Bench("sweep", ("--only", "sweep_smollm2"), repeats=True),
    "one_process": Bench("sweep", ("--only", "one_process"), repeats=True),
    "one_process_24": Bench("sweep", ("--only", "one_process_24"), repeats=True),
    "tokens_to_target": Bench("tokens_to_target"),
}
"""The shortest first."""


def chosen(text: str) -> list[str]:
    names = text.split(",")
    unknown = sorted(set(names) - BENCHES.keys())
    if unknown:
        raise argparse.ArgumentTypeError(f"no bench is called {', '.join(unknown)}; there are {', '.join(BENCHES)}")
    return names


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=chosen, default=list(BENCHES), help="names, with commas between them")
    parser.add_argument("--repeats", type=int, help="instead of what each bench does")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results")
    arguments = parser.parse_args()
    failed = []
    for name in arguments.only:
        print(f"\n{name}", flush=True)
        began = time.monotonic()
        command = BENCHES[name].command(arguments.results, arguments.repeats)
        if subprocess.run(command).returncode != 0:
            failed.append(name)
        print(f"{name} took {(time.monotonic() - began) / 60:.1f} min", flush=True)
    print(f"\nThe newest of every figure, in {arguments.results / 'latest.json'} and latest.png beside it")
    show(latest(arguments.results))
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
