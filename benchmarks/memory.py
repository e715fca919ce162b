"""The most memory that a toy's trials take on a CPU, by torch's allocator, beside what the doctor's arithmetic says.

Usage: PYTHONPATH=tests python -m benchmarks.memory [--ranks 1 2] [--only full,padded]
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from gpu.made import quiet
from measured_memory import BATCH, Case

from benchmarks.ranks import run_ranks

MIB = 2**20
SETTINGS = {
    "": {},
    "checkpointed": {"gradient_checkpointing": True},
    "accumulated": {"gradient_accumulation_steps": 2},
    "bf16": {"bf16": True},
    "bf16, checkpointed, accumulated": {
        "bf16": True,
        "gradient_checkpointing": True,
        "gradient_accumulation_steps": 2,
    },
}


def cases(ranks: int) -> Iterator[tuple[str, Case]]:
    """Every kind of trial; several ranks hold the model together or, of an adapter, each the whole of it."""
    for sharded in (False, True)[: 1 if ranks == 1 else 2]:
        for lora in (True, False):
            for packed in (True, False):
                for name, changes in SETTINGS.items():
                    batch = replace(BATCH, packed=packed)
                    words = (
                        "sharded" * sharded,
                        "adapter" if lora else "all weights",
                        "packed" if packed else "padded",
                    )
                    case = Case(lora=lora, changes=changes, batch=batch, sharded=sharded)
                    yield ", ".join(filter(None, (*words, name))), case


def rank_main(rank: int, world: int, folder: Path, only: list[str]) -> None:
    """Measure every case on this rank, and have rank 0 write down what it saw."""
    torch.set_num_threads(1)
    quiet()
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    rows = []
    for name, case in cases(world):
        if all(word in name for word in only):
            measured, planned = case.measured(folder / "toy"), case.planned(folder / "toy", world)

            rows.append([name, measured, planned.peak + sum(planned.host.values()), planned.peak_moment])
    if rank == 0:
        (folder / "rows.json").write_text(json.dumps(rows))


def run(world: int, only: str) -> None:
    """Measure on so many ranks and print a line a case."""
    with tempfile.TemporaryDirectory() as name:
        Case().write(Path(name, "toy"))
        run_ranks([sys.executable, "-m", "benchmarks.memory", "--folder", name, "--only", only], world)
        for case, measured, planned, moment in json.loads(Path(name, "rows.json").read_text()):
            line = f"{measured / MIB:6.2f} MiB, planned {planned / MIB:6.2f}, {planned / measured - 1:+6.1%}"
            print(f"{world} rank(s)  {case:62} {line}  ({moment})", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--only", default="", help="words of the cases, with commas between them")
    parser.add_argument("--rank", type=int)
    parser.add_argument("--world", type=int)
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    if given.rank is None:
        for count in given.ranks:
            run(count, given.only)
    else:
        rank_main(given.rank, given.world, given.folder, [word for word in given.only.split(",") if word])
