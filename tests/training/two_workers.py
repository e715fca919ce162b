"""One rank of two: runs a row of trials under gloo and writes what it saw. Usage: two_workers.py RANK MODEL FOLDER"""

import errno
import gc
import json
import math
import sys
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import toy_training
from torch import Tensor, nn
from toy_training import BCO, DPO, LEARNABLE, ORPO, Dying, Recorder, Verdict, plan, settings

from tune_dlrml.errors import StorageError
from tune_dlrml.evaluation.mt_bench.questionnaire import Questionnaire
from tune_dlrml.evaluation.records import Question
from tune_dlrml.losses.lrml.geometry import dlrml_geometry
from tune_dlrml.losses.preference import PairBatch
from tune_dlrml.models.loading import parse_model_reference
from tune_dlrml.training import trial
from tune_dlrml.training.resident import Resident
from tune_dlrml.training.sharding import choice
from tune_dlrml.training.sharding.shards import bytes_here, local_part
from tune_dlrml.training.trainer import PreferenceTrainer

WEIGHTED = {**DPO, "ld_alpha": 0.3, "weighting": "wpo"}
SFT = {**DPO, "sft": {"rule": "spherical", "weight": 0.3}}


class FaultOnRankOne(toy_training.Dpo):
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


def run_with_a_fault(model: Resident, **changes: Any) -> dict[str, Any]:
    build, trial.build_loss = trial.build_loss, lambda config: FaultOnRankOne()
    try:
        return run(model, DPO, **changes)
    finally:
        trial.build_loss = build


def held_out(model: Resident) -> dict[str, float]:
    """Held-out numbers of a policy that differs from its reference, the same on both ranks."""
    toy_training.disturb(model.model)
    return model.held_out.evaluate(model.model, beta_kl=0.1, geometry=dlrml_geometry(20.0))


def local_parts(model: nn.Module) -> list[Tensor]:
    return [local_part(parameter.detach()).clone() for parameter in model.parameters()]


def answers(model: Resident) -> list[Any]:
    """What a trial answers at its end, on rank 0; the ranks have unequal numbers of questions."""
    questions = [Question(index, "math", (f"review {10**index}:", "why?")[: 1 + index % 2]) for index in range(5)]
    asked = Questionnaire(tuple(questions), max_new_tokens=6, batch_size=2, seed=0)
    spec, folder = toy_training.spec(DPO, settings()), shared_folder()
    budget = replace(plan(2, workers=2), questionnaire=asked)
    trial.train_trial(model, spec, budget, Verdict(), folder=folder)
    return [given.turns for given in asked.answers(folder) or []]


def chosen(model: Path) -> list[bool]:
    """Whether `auto` divides the toy where there is as much memory as here, and where one rank has very little."""
    ask = partial(choice.choose_sharding, "auto", parse_model_reference(str(model)), settings(), torch.float32)
    here, room = ask(), choice._device_bytes
    choice._device_bytes = lambda: room() if dist.get_rank() == 0 else 1000
    try:
        return [here, ask()]
    finally:
        choice._device_bytes = room


def jobs(lora: Resident, full: Resident) -> dict[str, Any]:
    pristine = [local_parts(each.model) for each in (lora, full)]
    killed = {"lora": {**toy_training.LORA, "lora_dropout": 0.2}, "disable_dropout": False}
    seen = {
        "dpo": run(lora, DPO),
        "accumulated": run(lora, DPO, per_device_train_batch_size=2, gradient_accumulation_steps=2),
        "learnable": run(lora, LEARNABLE),
        "running": run(lora, BCO),
        "weighted": run(lora, WEIGHTED, per_device_train_batch_size=2, gradient_accumulation_steps=2),
        "sft": run(lora, SFT),
        "full": run(full, DPO, lora=None, learning_rate=1e-3),
        "full_sft": run(full, SFT, lora=None, learning_rate=1e-3, gradient_accumulation_steps=2),
        "stopped": run(lora, DPO, stop_at=4),
        "diverged": run(lora, DPO, learning_rate=1e20),
        "fault": run_with_a_fault(lora),
        "full_fault": run_with_a_fault(full, lora=None, learning_rate=1e-3),
        "again": run(lora, DPO),
        "killed": run_killed(lora, LEARNABLE, **killed),
        "killed_full": run_killed(full, DPO, lora=None, learning_rate=1e-3, gradient_accumulation_steps=2),
        "storage_error": storage_error(lora),
        "answers": answers(lora),
    }
    same = zip(pristine, [local_parts(each.model) for each in (lora, full)], strict=True)
    return seen | {
        "pristine": all(torch.equal(*pair) for parts in same for pair in zip(*parts, strict=True)),
        "bytes": bytes_here(full.model),
        "held_out": held_out(full),
    }


def main(rank: int, model: Path, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    whole, sharded = (
        [
            toy_training.resident(model, settings(lora=which), fsdp=fsdp, beyond=True)
            for which in (toy_training.LORA, None)
        ]
        for fsdp in (False, True)
    )
    gc.collect()
    gc.freeze()  # as a worker does
    alone = toy_training.resident(model, settings(), with_reference=False)
    free = {"reference_free": run(alone, ORPO)}
    writing = [
        toy_training.resident(model, settings(), fsdp=fsdp, completer=toy_training.completer())
        for fsdp in (False, True)
    ]
    written = [run(each, DPO) for each in writing]
    seen = jobs(*whole) | free | {"sharded": jobs(*sharded), "auto": chosen(model), "written": written}
    (folder / f"rank{rank}.json").write_text(json.dumps(seen))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
