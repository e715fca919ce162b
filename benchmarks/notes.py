"""What the programs that tune_dlrml is measured against share: their rungs, and the log of each trial."""

import json
import time
from pathlib import Path


def note(settings, trial, kind, **values):
    """Append an event to the log of a trial."""
    line = json.dumps({"kind": kind, "timestamp_ms": int(time.time() * 1000), **values})
    with Path(settings["out"], "trials", f"{trial}.jsonl").open("a") as file:
        file.write(line + "\n")


def rungs(settings):
    """Steps at which successive halving decides, and the last one."""
    step, found = settings["grace_period"], [settings["steps"]]
    while step < settings["steps"]:
        found.append(step)
        step *= settings["reduction_factor"]
    return sorted(found)
