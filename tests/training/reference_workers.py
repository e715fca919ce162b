"""One process of two that share a folder of reference log-probs: each alone at first, then as two ranks under gloo.

Writes what it saw into FOLDER/rank<RANK>.json. Usage: reference_workers.py RANK MODEL FOLDER
"""

import json
import logging
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import toy_training
from toy_training import settings

from tune_dlrml.training.pairs.batches import padded_collator
from tune_dlrml.training.reference import logps
from tune_dlrml.training.reference.cache import ReferenceCache, ReferenceKey
from tune_dlrml.training.reference.logps import ReferenceLogProbs, Row
from tune_dlrml.training.resident import Resident

KEY = ReferenceKey(
    "toy", "1", "float32", None, False, "tokens", None, 64, "keep_start", "padded", "sdpa", "cpu", (-1.5,)
)
COLUMNS = ("prompt_ids", "chosen_ids", "rejected_ids")


def bare(rows: list[Row]) -> list[Row]:
    """Copies without reference values."""
    return [{name: row[name] for name in COLUMNS} for row in rows]


def reference(resident: Resident, folder: Path | None, **changes: Any) -> ReferenceLogProbs:
    """Reference log-probs of a resident's model, as if no row had met it yet."""
    training = settings(**{"per_device_eval_batch_size": 4, **changes})
    cache = None if folder is None else ReferenceCache(folder, KEY)
    return ReferenceLogProbs(resident.model, training, padded_collator(resident.tokenizer, training), cache)


def values(rows: list[Row]) -> list[list[float]]:
    return [[row["ref_chosen_logps"], row["ref_rejected_logps"]] for row in rows]


class Told(logging.Handler):
    """Tells the other process that this one waits."""

    def __init__(self, store: dist.Store) -> None:
        super().__init__()
        self._store = store

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage().startswith("waiting for another worker group"):
            self._store.set("second waits", "yes")


def race(resident: Resident, rank: int, folder: Path) -> dict[str, Any]:
    """The second process asks while the first one computes; of 12 rows, each wants 8 and 4 are wanted by both."""
    store = dist.FileStore(str(folder / "race_store"), 2)
    found = reference(resident, folder / "race")
    rows = bare(resident.train_rows[:12])[4 * rank : 4 * rank + 8]
    if rank == 0:
        collate = found._collate

        def telling(batch: list[Row]) -> Any:
            store.set("first computes", "yes")
            store.wait(["second waits"])
            return collate(batch)

        found._collate = telling
    else:
        logps.PATIENCE_S = 0.01
        log = logging.getLogger("tune_dlrml.training.reference.logps")
        log.setLevel(logging.INFO)
        log.addHandler(Told(store))
        store.wait(["first computes"])
    found.fill(rows)
    store.set(f"{rank} is done", "yes")
    store.wait(["0 is done", "1 is done"])
    return {"values": values(rows), "tokens": found.tokens_forwarded}


def two_ranks(resident: Resident, folder: Path) -> dict[str, Any]:
    """All rows as two ranks, then once more by others."""
    found, rows = reference(resident, folder / "ranks"), bare(resident.train_rows)
    found.fill(rows)
    again, same = reference(resident, folder / "ranks"), bare(resident.train_rows)
    again.fill(same)
    return {"values": values(rows), "tokens": found.tokens_forwarded, "again": [values(same), again.tokens_forwarded]}


def fault(resident: Resident, folder: Path) -> dict[str, Any]:
    """What both ranks raise when the forward fails on rank 1 alone, and whether the lock is free afterwards."""
    found, rows = reference(resident, folder / "fault"), bare(resident.train_rows)
    collate = found._collate

    def failing(batch: list[Row]) -> Any:
        if dist.get_rank() == 1:
            raise ValueError("no batch")
        return collate(batch)

    found._collate = failing
    try:
        found.fill(rows)
        error = "nothing"
    except Exception as raised:
        error = repr(raised)
    dist.barrier()
    cache = ReferenceCache(folder / "fault", KEY)
    free = dist.get_rank() == 1 and cache.acquire(0)
    cache.release()
    return {"error": error, "free": free, "filled": any("ref_chosen_logps" in row for row in rows)}


def main(rank: int, model: Path, folder: Path) -> None:
    torch.set_num_threads(1)
    resident = toy_training.resident(model, settings(), train=20, held_out=2)
    seen = {"race": race(resident, rank, folder)}
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    seen |= {"ranks": two_ranks(resident, folder), "fault": fault(resident, folder)}
    (folder / f"rank{rank}.json").write_text(json.dumps(seen))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
