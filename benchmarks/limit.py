"""A search on the embedded model against a bare PyTorch loop that does nothing else: what this project adds.

Run: PYTHONPATH=tests python -m benchmarks.limit [--trials 4] [--steps 10] [--repeats 1]
[--pairs ../shared/data/prefs]

Ours is `tune-dlrml search` without successive halving, so that both sides do the same optimizer steps and held-out
evaluations. Counted is the time from the first trial's first report, when the group has booted, loaded and has its
reference values, to the end of the last trial; what lies before it is told apart.

The limit is a loop in one process over the same rows in the same order with the same kernels (packed pairs, TRL's head,
the resident held-out set): a fresh adapter from PEFT, torch's AdamW, forward, backward, clip, step; no trainer, no
reports, no checkpoints, no Ray, no study, no MLflow.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model

from benchmarks.results import RESULTS, Row, Spread, cpus, header, interleaved, record
from benchmarks.sides import run_ours, working_folder
from benchmarks.sweep import PAIRS, Size, smollm2_document
from tune_dlrml.config import TrainingConfig
from tune_dlrml.config.loading import parse_config
from tune_dlrml.data import select_pairs
from tune_dlrml.losses.preference import PairBatch, PreferenceLoss
from tune_dlrml.losses.registry import build_loss
from tune_dlrml.models.loading import load_reader, parse_model_reference
from tune_dlrml.space import SearchSpace
from tune_dlrml.system.allocator import keep_freed_memory
from tune_dlrml.training.arguments import lora_config
from tune_dlrml.training.pairs.batches import pair_log_probs
from tune_dlrml.training.reference.logps import computing
from tune_dlrml.training.resident import Resident


def bare_loop(document: dict[str, Any]) -> dict[str, float]:
    """Seconds of all trials, and of what lies before them."""
    began = time.perf_counter()
    config = parse_config(document, source="the benchmark")
    torch.set_num_threads(config.resources.cpus_per_worker)
    keep_freed_memory()
    training = config.training
    chosen = select_pairs(config.dataset, training, lambda: load_reader(parse_model_reference(config.model)))
    resident = Resident.load(config.model, chosen.pairs(), training)
    assert training.max_steps is not None and training.lora is not None
    rows = list(resident.rows(training, steps=training.max_steps, workers=1))
    size = training.per_device_train_batch_size
    batches = [resident.form.collate(rows[start : start + size]) for start in range(0, len(rows), size)]
    space = SearchSpace(config)
    specs = [space.spec(number, point) for number, point in enumerate(space.grid())][: config.search.num_trials]
    ready = time.perf_counter()
    for spec in specs:
        torch.manual_seed(training.seed)
        policy = get_peft_model(resident.model, lora_config(training.lora))
        loss = build_loss(spec.loss)
        train(policy, batches, spec.training, loss)
        resident.held_out.evaluate(policy, beta_kl=loss.beta_kl, geometry=loss.geometry())
        del policy
        resident.restore()
    return {"before_s": ready - began, "trials_s": time.perf_counter() - ready}


def train(policy: torch.nn.Module, batches: list[Any], training: TrainingConfig, loss: PreferenceLoss) -> None:
    policy.train()
    weights = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=training.learning_rate, weight_decay=training.weight_decay)
    accumulation = training.gradient_accumulation_steps
    for number, batch in enumerate(batches, start=1):
        with computing(policy, training):
            chosen_B, rejected_B = pair_log_probs(policy, batch)
            pairs = PairBatch(
                chosen_B - batch["ref_chosen_logps"],
                rejected_B - batch["ref_rejected_logps"],
                batch["chosen_lengths"],
                batch["rejected_lengths"],
            )
            mean = loss(pairs).mean() / accumulation
        mean.backward()
        if number % accumulation == 0:
            torch.nn.utils.clip_grad_norm_(weights, training.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()


def our_search(document: dict[str, Any], folder: Path) -> dict[str, float]:
    """Seconds from the first report of the first trial to the end of the last one, and of the rest of the command."""
    run = run_ours(document, folder)
    logs = [path.read_text().splitlines() for path in folder.glob("runs/*/trials/*/events.jsonl")]
    events = [json.loads(line) for lines in logs for line in lines]
    first = min(event["timestamp_ms"] for event in events if event["kind"] == "report")
    last = max(event["timestamp_ms"] for event in events if event["kind"] == "end")
    trials_s = (last - first) / 1000
    return {"before_s": run.wall_s - trials_s, "trials_s": trials_s}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=4)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--pairs", type=Path, default=PAIRS)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--work", type=Path, help="where searches stay")
    arguments = parser.parse_args()
    measured_on = header(dtype="bfloat16", threads=cpus())
    with working_folder(arguments.work) as work:
        size = Size(trials=arguments.trials, steps=arguments.steps)
        document = smollm2_document(work / "data", size, arguments.pairs)
        document["search"]["scheduler"] = None
        sides = {
            "ours": lambda repeat: our_search(document, work / f"ours-{repeat}"),
            "limit": lambda _: bare_loop(document),
        }
        seconds = interleaved(sides, arguments.repeats)
    ours, limit = (Spread.of(each["trials_s"] for each in seconds[side]) for side in ("ours", "limit"))
    boot = Spread.of(each["before_s"] for each in seconds["ours"])
    print(f"ours {ours} s, limit {limit} s; boot, load, reference pass and end of the search apart: {boot} s")
    row = Row.judged("limit", ours=ours.median, other=limit.median, goal=1.25, better="lower", unit="s")
    record("limit", [row], seconds, measured_on=measured_on, folder=arguments.results)


if __name__ == "__main__":
    main()
