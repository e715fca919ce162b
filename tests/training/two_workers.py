"""One rank of two: runs a row of trials under gloo and writes what it saw. Usage: two_workers.py RANK MODEL FOLDER"""

import errno
import gc
import json
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import toy_training
from torch import Tensor, nn
from toy_training import DPO, LEARNABLE, Recorder, plan, settings

from tune_dlrml.errors import StorageError
from tune_dlrml.losses.geometry import dlrml_geometry
from tune_dlrml.losses.registry import Dpo, PairBatch
from tune_dlrml.records import Answer, Report
from tune_dlrml.training import trial
from tune_dlrml.training.resident import Resident
from tune_dlrml.training.trainer import PreferenceTrainer


class Verdict(Recorder):
    """Rank 0 decides, the others hear of it."""

    def send(self, report: Report) -> Answer:
        answer = [super().send(report)]
        dist.broadcast_object_list(answer, 0)
        return answer[0]


class Dying(Verdict):
    """Both ranks raise at step 6."""

    def send(self, report: Report) -> Answer:
        if report.step == 6:
            raise ConnectionError("nobody listens")
        return super().send(report)


class FaultOnRankOne(Dpo):
    """DPO whose third batch is not finite on rank 1."""

    calls = 0

    def forward(self, pairs: PairBatch) -> Tensor:
        self.calls += 1
        bad = self.calls == 3 and dist.get_rank() == 1
        return super().forward(pairs) * (math.nan if bad else 1.0)


def told(channel: Recorder, outcome: Any) -> dict[str, Any]:
    return {
        "reports": [{"step": report.step, **report.metrics} for report in channel.reports],
        "outcome": None if outcome is None else [outcome.state, outcome.reason],
    }


def run(model: Resident, loss: dict[str, Any], stop_at: int | None = None, **changes: Any) -> dict[str, Any]:
    channel = Verdict(stop_at)
    spec = toy_training.spec(loss, settings(**({"per_device_train_batch_size": 4} | changes)))
    return told(channel, trial.train_trial(model, spec, plan(8, {4}, workers=2), channel, folder=shared_folder()))


def shared_folder() -> Path:
    """A new folder that both ranks have."""
    box = [tempfile.mkdtemp(dir=sys.argv[3]) if dist.get_rank() == 0 else ""]
    dist.broadcast_object_list(box, 0)
    return Path(box[0])


def run_killed(model: Resident, loss: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A trial that dies on both ranks at step 6 and goes on from step 4, beside one that does not die."""
    spec, folders = toy_training.spec(loss, settings(**changes)), (shared_folder(), shared_folder())
    channel, budget = Verdict(), plan(8, {4}, workers=2)
    whole = told(channel, trial.train_trial(model, spec, budget, channel, folder=folders[0]))
    dying = Dying()
    try:
        trial.train_trial(model, spec, budget, dying, folder=folders[1])
    except ConnectionError:
        torch.manual_seed(dist.get_rank() + 99)
    channel = Verdict()
    outcome = trial.train_trial(model, spec, budget, channel, folder=folders[1])
    return {
        "whole": whole,
        "before": told(dying, None),
        "after": told(channel, outcome),
        "folders": [*map(str, folders)],
    }


def storage_error(model: Resident) -> str:
    """What both ranks raise when rank 1 alone cannot write its part."""
    write_state = PreferenceTrainer.write_state

    def failing(trainer: PreferenceTrainer, folder: Path) -> None:
        if dist.get_rank() == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        write_state(trainer, folder)

    PreferenceTrainer.write_state = failing
    folder = shared_folder()
    try:
        trial.train_trial(model, toy_training.spec(DPO, settings()), plan(2, workers=2), Verdict(), folder=folder)
    except StorageError as error:
        left = sorted(path.name for path in folder.rglob("*"))
        return f"{str(error).replace(str(folder), 'trial')} Left: {left}"
    finally:
        PreferenceTrainer.write_state = write_state
    return "nothing"


def run_with_a_fault(model: Resident) -> dict[str, Any]:
    build, trial.build_loss = trial.build_loss, lambda config: FaultOnRankOne(beta_kl=0.1)
    try:
        return run(model, DPO)
    finally:
        trial.build_loss = build


def held_out(model: Resident) -> dict[str, float]:
    """Held-out numbers of a policy that differs from its reference, the same on both ranks."""
    toy_training.disturb(model.model)
    return model.held_out.evaluate(model.model, beta_kl=0.1, geometry=dlrml_geometry(20.0))


def checksum(model: nn.Module) -> float:
    return sum(parameter.double().sum().item() for parameter in model.parameters())


def main(rank: int, model: Path, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    lora, full = (toy_training.resident(model, settings(lora=which)) for which in (toy_training.LORA, None))
    gc.collect()
    gc.freeze()  # as a worker does
    seen = {
        "dpo": run(lora, DPO),
        "accumulated": run(lora, DPO, per_device_train_batch_size=2, gradient_accumulation_steps=2),
        "learnable": run(lora, LEARNABLE),
        "full": run(full, DPO, lora=None, learning_rate=1e-3),
        "stopped": run(lora, DPO, stop_at=4),
        "diverged": run(lora, DPO, learning_rate=1e20),
        "fault": run_with_a_fault(lora),
        "again": run(lora, DPO),
        "killed": run_killed(lora, LEARNABLE, lora={**toy_training.LORA, "lora_dropout": 0.2}, disable_dropout=False),
        "killed_full": run_killed(full, DPO, lora=None, learning_rate=1e-3, gradient_accumulation_steps=2),
        "storage_error": storage_error(lora),
        "checksum": checksum(full.model),
        "held_out": held_out(full),
    }
    (folder / f"rank{rank}.json").write_text(json.dumps(seen))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
