"""A group that divides the weights of its model over its ranks, against one that does not: every kind of trial.

On CPU ranks (gloo): numbers, weights of checkpoints, memory at rest, the first trial again after twenty others.
Usage: PYTHONPATH=tests python benchmarks/sharding.py [--ranks 2 4] [--only lora,full]
"""

import argparse
import gc
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import toy
import toy_training
from safetensors.torch import load_file
from toy_training import DPO, LEARNABLE, Recorder, plan, settings

from tune_dlrml.records import Answer, Report
from tune_dlrml.training.checkpoint import newest_checkpoint
from tune_dlrml.training.resident import Resident
from tune_dlrml.training.sharding.shards import bytes_here
from tune_dlrml.training.trial import train_trial

FULL = {"lora": None, "learning_rate": 1e-3}
SFT = {**DPO, "sft": {"rule": "logarithmic", "weight": 0.3}}
TWICE = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "dpo": (DPO, {}),
    "accumulated": (DPO, TWICE),
    "learnable": (LEARNABLE, {}),
    "sft": (SFT, TWICE),
    "padded": (DPO, {"shared_prompt": False}),
    "checkpointed": (DPO, {"gradient_checkpointing": True}),
    "diverged": (DPO, {"learning_rate": 1e20}),
    "bf16": (DPO, {"bf16": True}),
    "tied": (DPO, {}),
    "adamw_torch_fused": (DPO, {"optim": "adamw_torch_fused"}),
    "adafactor": (DPO, {"optim": "adafactor"}),
    "sgd": (DPO, {"optim": "sgd", "learning_rate": 0.1}),
}
OF_A_GROUP = ("bf16", "shared_prompt")
"""Settings that all trials of a group share."""
AGAIN = 20


@dataclass(frozen=True)
class Seen:
    """What rank 0 saw of a trial."""

    reports: list[dict[str, float]]
    outcome: Any
    checkpoint: str | None


class Verdict(Recorder):
    """Rank 0 decides, the others hear of it."""

    def send(self, report: Report) -> Answer:
        answer = [super().send(report)]
        dist.broadcast_object_list(answer, 0)
        return answer[0]


class Ranks:
    """One rank's groups, each of a whole or a sharded model, made when they are first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._made: dict[str, Resident] = {}

    def group(self, changes: dict[str, Any], *, fsdp: bool, model: str = "toy") -> Resident:
        own = {key: value for key, value in changes.items() if key in (*OF_A_GROUP, "lora")}
        key = json.dumps([own, fsdp, model])
        if key not in self._made:
            place = self.folder / model
            self._made[key] = Resident.load(str(place), toy_training.pairs(place), settings(**own), fsdp=fsdp)
        return self._made[key]

    def train(self, model: Resident, loss: dict[str, Any], changes: dict[str, Any]) -> Seen:
        box = [tempfile.mkdtemp(dir=self.folder)]
        dist.broadcast_object_list(box, 0)
        channel, own = Verdict(), toy_training.OF_THE_GROUP | {"activation_gib"}
        spec = toy_training.spec(loss, settings(**({"per_device_train_batch_size": 4} | changes)))
        budget = plan(8, {4}, workers=dist.get_world_size())
        outcome = train_trial(model, spec, budget, channel, folder=Path(box[0]))
        reports = [
            {name: value for name, value in report.metrics.items() if name not in own} for report in channel.reports
        ]
        checkpoint = newest_checkpoint(Path(box[0]))
        ended = None if outcome is None else [str(outcome.state), outcome.reason]
        return Seen(reports, ended, None if checkpoint is None else str(checkpoint.path))


def rank_main(rank: int, world: int, folder: Path, only: list[str]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    ranks, rows = Ranks(folder), {}
    for trained, base in (("lora", {}), ("full", FULL)):
        for kind, (loss, changes) in KINDS.items():
            if (trained, kind) != ("full", "adafactor") and (not only or {trained, f"{trained} {kind}"} & {*only}):
                model = "tied" if kind == "tied" else "toy"
                whole, sharded = (
                    ranks.train(ranks.group(base | changes, fsdp=fsdp, model=model), loss, base | changes)
                    for fsdp in (False, True)
                )
                rows[f"{trained} {kind}"] = [asdict(whole), asdict(sharded)]
    rest = repeated(ranks) if not only or "rest" in only else {}
    (folder / f"{rank}.json").write_text(json.dumps({"rows": rows, "rest": rest}))
    dist.barrier()


def repeated(ranks: Ranks) -> dict[str, Any]:
    """The first trial of a sharded group and the same after others, and what twenty trials leave."""
    found: dict[str, Any] = {}
    for trained, base in (("lora", {}), ("full", FULL)):
        model = ranks.group(base, fsdp=True)
        first, tensors = ranks.train(model, DPO, base), []
        for index in range(AGAIN - 1):
            other = DPO if index % 5 == 3 else LEARNABLE
            last = ranks.train(model, other, base if other is DPO else base | {"learning_rate": 2e-3})
            gc.collect()
            tensors.append(sum(issubclass(type(each), torch.Tensor) for each in gc.get_objects()))
            if index == 3:
                fifth = last
        weights = sum(weight.numel() * weight.element_size() for weight in model.model.parameters())
        found[trained] = {
            "first_is_fifth": first.reports == fifth.reports,
            "tensors": [tensors[0], tensors[-1]],
            "share": bytes_here(model.model) / weights,
        }
    return found


def compared(folder: Path, world: int) -> Iterator[str]:
    seen = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(world)]
    for name, (whole, sharded) in seen[0]["rows"].items():
        pairs = zip(whole["reports"], sharded["reports"], strict=True)
        off = max((abs(a[key] - b[key]), key) for a, b in pairs for key in a)
        same = whole["outcome"] == sharded["outcome"]
        weights = _furthest(whole["checkpoint"], sharded["checkpoint"])
        yield f"{world} ranks  {name:18} {off[0]:.1e} ({off[1]}), weights {weights:.1e}, same end: {same}"
    for rank, each in enumerate(seen):
        for trained, rest in each["rest"].items():
            yield f"{world} ranks  rank {rank} {trained}: {rest}"


def _furthest(whole: str | None, sharded: str | None) -> float:
    if whole is None or sharded is None:
        return math.nan
    file = next(Path(whole).glob("*model.safetensors"))
    ours, theirs = load_file(Path(sharded, file.name)), load_file(file)
    assert ours.keys() == theirs.keys(), ours.keys() ^ theirs.keys()
    return max(float((ours[name].float() - theirs[name].float()).abs().max()) for name in ours)


def run(world: int, only: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        toy.write_model(folder / "toy")
        toy.write_model(folder / "tied", tied=True)
        own = {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
        command = [sys.executable, __file__, "--world", str(world), "--folder", name, "--only", only]
        processes = [
            subprocess.Popen(
                [*command, "--rank", str(rank)],
                env=os.environ | own | {"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"},
            )
            for rank in range(world)
        ]
        codes = [process.wait() for process in processes]
        assert codes == [0] * world, codes
        print("\n".join(compared(folder, world)), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--only", default="")
    parser.add_argument("--rank", type=int)
    parser.add_argument("--world", type=int)
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    if given.rank is None:
        for count in given.ranks:
            run(count, given.only)
    else:
        rank_main(given.rank, given.world, given.folder, [name for name in given.only.split(",") if name])
