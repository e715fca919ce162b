"""A group that divides the weights of its model over its ranks, against one that does not: every kind of trial.

On CPU ranks (gloo): numbers, weights of checkpoints, trials that die and go on, memory at rest, what is left of twenty.
Where all weights are trained, a second pair of trials adds the ranks' gradients in one order and does not clip them,
since their norm is a sum too: what then still differs is no rounding of sums.
Usage: PYTHONPATH=tests python benchmarks/sharding.py [--ranks 2 4] [--only lora,full,killed,rest]
"""

import argparse
import gc
import json
import math
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import toy
import toy_training
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from toy_training import DPO, LEARNABLE, Dying, Verdict, plan, settings

from benchmarks.ranks import run_ranks
from tune_dlrml.training.checkpoint import newest_checkpoint
from tune_dlrml.training.resident import Resident
from tune_dlrml.training.sharding.shards import bytes_here, local_part
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


@contextmanager
def added_in_rank_order() -> Iterator[None]:
    """The ranks' gradients are added first to last, by DDP as by FSDP2, whose collectives have orders of their own."""
    construct, reduce_scatter = DistributedDataParallel.__init__, dist.reduce_scatter_single

    def added(mine: Tensor) -> Tensor:
        parts = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, mine)
        return sum(parts[1:], parts[0])

    def averaged(_: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        future: torch.futures.Future[Tensor] = torch.futures.Future()
        future.set_result(added(bucket.buffer()) / dist.get_world_size())
        return future

    def constructed(self: DistributedDataParallel, *args: Any, **kwargs: Any) -> None:
        construct(self, *args, **kwargs)
        self.register_comm_hook(None, averaged)

    def scattered(output: Tensor, input: Tensor, *, op: dist.ReduceOp.RedOpType, **_: Any) -> None:
        averages = dist.get_world_size() if op == dist.ReduceOp.AVG else 1
        output.copy_(added(input).chunk(dist.get_world_size())[dist.get_rank()] / averages)

    DistributedDataParallel.__init__, dist.reduce_scatter_single = constructed, scattered
    try:
        yield
    finally:
        DistributedDataParallel.__init__, dist.reduce_scatter_single = construct, reduce_scatter


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

    def both(self, model: str, loss: dict[str, Any], changes: dict[str, Any]) -> list[dict[str, Any]]:
        """A trial on a whole model and one on a divided model."""
        groups = (self.group(changes, fsdp=fsdp, model=model) for fsdp in (False, True))
        return [asdict(self.train(group, loss, changes)) for group in groups]

    def train(
        self, model: Resident, loss: dict[str, Any], changes: dict[str, Any], *, dies: bool = False, **saving: int
    ) -> Seen:
        """One trial; of one that dies, the attempt that goes on from its checkpoint."""
        box = [tempfile.mkdtemp(dir=self.folder)]
        dist.broadcast_object_list(box, 0)
        spec = toy_training.spec(loss, settings(**({"per_device_train_batch_size": 4} | changes)))
        budget = plan(8, {4}, workers=dist.get_world_size(), **saving)
        if dies:
            with suppress(ConnectionError):
                train_trial(model, spec, budget, Dying(), folder=Path(box[0]))
            torch.manual_seed(dist.get_rank() + 99)
        channel, own = Verdict(), toy_training.OF_THE_GROUP | {"activation_gib"}
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
                for order in (False, True) if trained == "full" else (False,):
                    with added_in_rank_order() if order else nullcontext():
                        name = f"{trained} {kind}{', one order' * order}"
                        own = base | changes | ({"max_grad_norm": 0.0} if order else {})
                        rows[name] = ranks.both("tied" if kind == "tied" else "toy", loss, own)
    killed = died_and_went_on(ranks) if not only or "killed" in only else {}
    rest = repeated(ranks) if not only or "rest" in only else {}
    (folder / f"{rank}.json").write_text(json.dumps({"rows": rows, "killed": killed, "rest": rest}))
    dist.barrier()


def died_and_went_on(ranks: Ranks) -> dict[str, Any]:
    """Trials that nobody touched, and those that died at step 6 and go on from step 4.

    DDP lays its buckets out anew after a first step, so that more than two ranks add the next step's in another order.
    """
    found = {}
    for trained, base in (("lora", {}), ("full", FULL | {"gradient_accumulation_steps": 2})):
        for fsdp, order in ((False, False), (False, True), (True, False), (True, True)):
            model = ranks.group(base, fsdp=fsdp)
            with added_in_rank_order() if order else nullcontext():
                name = f"{trained} {'sharded' if fsdp else 'whole'}{', one order' * order}"
                found[name] = [asdict(ranks.train(model, DPO, base, dies=dies, save_steps=4)) for dies in (False, True)]
    return found


def repeated(ranks: Ranks) -> dict[str, Any]:
    """The first trial of a sharded group and the same after others, and what twenty trials leave."""
    found: dict[str, Any] = {}
    for trained, base in (("lora", {}), ("full", FULL)):
        model = ranks.group(base, fsdp=True)
        first, left = ranks.train(model, DPO, base), []
        for index in range(AGAIN - 1):
            other = DPO if index % 5 == 3 else LEARNABLE
            last = ranks.train(model, other, base if other is DPO else base | {"learning_rate": 2e-3})
            left.append(held(model.model))
            if index == 3:
                fifth = last
        weights = sum(weight.numel() * weight.element_size() for weight in model.model.parameters())
        found[trained] = {
            "first is fifth": first.reports == fifth.reports,
            "left after two trials": left[0],
            f"more after {AGAIN}": {name: left[-1][name] - left[0][name] for name in left[0]},
            "share of the weights": bytes_here(model.model) / weights,
        }
    return found


def held(model: nn.Module) -> dict[str, int]:
    """What this process holds between two trials."""
    gc.collect()
    tensors = [each for each in gc.get_objects() if issubclass(type(each), Tensor)]
    hooks = (value for module in model.modules() for name, value in vars(module).items() if name.endswith("_hooks"))
    return {
        "tensors": len(tensors),
        "bytes": sum(local_part(each.detach()).nbytes for each in tensors),
        "hooks": sum(map(len, hooks)),
        "threads": threading.active_count(),
        "files": len(os.listdir("/proc/self/fd")),
        "children": len(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()),
    }


def compared(folder: Path, world: int) -> Iterator[str]:
    seen = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(world)]
    for name, (whole, sharded) in seen[0]["rows"].items():
        pairs = zip(whole["reports"], sharded["reports"], strict=True)
        off = max((abs(a[key] - b[key]), key) for a, b in pairs for key in a)
        same = whole["outcome"] == sharded["outcome"]
        weights = _furthest(whole["checkpoint"], sharded["checkpoint"])
        yield f"{world} ranks  {name:32} {off[0]:.1e} ({off[1]}), weights {weights:.1e}, same end: {same}"
    for name, (whole, after) in seen[0]["killed"].items():
        same = whole["reports"][-len(after["reports"]) :] == after["reports"] and whole["outcome"] == after["outcome"]
        weights = _furthest(whole["checkpoint"], after["checkpoint"])
        yield f"{world} ranks  {name}, died and went on: the same reports: {same}, weights {weights:.1e}"
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
        run_ranks([sys.executable, "-m", "benchmarks.sharding", "--folder", name, "--only", only], world)
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
