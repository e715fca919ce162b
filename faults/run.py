"""Every fault run, one after another: a table, and faults/results/latest.json. Exit 1 unless all went well.

Run: make faults, or with `ONLY=driver,worker` some of them and with `SEED=1` other moments.
"""

import argparse
import json
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from faults import (
    bad_input,
    discovery,
    disk,
    driver,
    judge_endpoint,
    leftovers,
    processes,
    raylet,
    sharded,
    state_layer,
    tracking_server,
)

FAULTS = {
    "bad_input": bad_input.run,
    "judge_endpoint": judge_endpoint.run,
    "state_layer": state_layer.run,
    "discovery": discovery.run,
    "disk": disk.run,
    "worker": partial(processes.run, "worker"),
    "slot": partial(processes.run, "slot"),
    "mailbox": partial(processes.run, "mailbox"),
    "sharded": sharded.run,
    "raylet": raylet.run,
    "mlflow": tracking_server.run,
    "leftovers": leftovers.run,
    "driver": driver.run,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default=",".join(FAULTS))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rows, results = [], Path(__file__).parent / "results"
    results.mkdir(exist_ok=True)
    for name in arguments.only.split(","):
        began = time.monotonic()
        rows.append(FAULTS[name](seed=arguments.seed))
        (results / "latest.json").write_text(json.dumps(rows, indent=2) + "\n")
        print(f"{name}: {rows[-1]['failed']} failed in {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    _show(rows)
    sys.exit(1 if any(row["failed"] or not row["tried"] for row in rows) else 0)


def _show(rows: list[dict[str, Any]]) -> None:
    table = Table("fault", "tried", "failed", "detail")
    for row in rows:
        table.add_row(row["name"], str(row["tried"]), str(row["failed"]), row["detail"])
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
