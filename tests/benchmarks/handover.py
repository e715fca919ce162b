"""How long a trial waits from its hand-over to the end of its first optimizer step, over 30 trials of the toy.

Run: make bench. Prints a table; the first trial of the group also waits for the group's boot and is shown apart.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import toy
import yaml

TRIALS = 30


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="handover_") as name:
        folder = Path(name)
        document = toy.document(
            toy.write_model(folder / "model"),
            toy.write_pairs(folder / "train.jsonl", 256),
            toy.write_pairs(folder / "eval.jsonl", 64, seed=1),
        )
        document["search"]["num_trials"] = TRIALS
        (folder / "toy.yaml").write_text(yaml.safe_dump(document))
        program = Path(sys.executable).with_name("tune-dlrml")
        subprocess.run([program, "search", "toy.yaml"], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        waits = []
        for number in range(TRIALS):
            lines = (folder / f"runs/toy/trials/{number}/events.jsonl").read_text().splitlines()
            events = [json.loads(line) for line in lines]
            first = next(e for e in events if e["kind"] == "report" and e["step"] == 1)
            waits.append((first["timestamp_ms"] - events[0]["timestamp_ms"]) / 1000)
    later = sorted(waits[1:])
    print(f"trials                                   {TRIALS}")
    print(f"first trial, with the group's boot       {waits[0]:.2f} s")
    print(f"later trials, median                     {statistics.median(later):.2f} s")
    print(f"later trials, 10th to 90th percentile    {later[2]:.2f} to {later[-3]:.2f} s")


if __name__ == "__main__":
    main()
