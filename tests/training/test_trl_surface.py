"""What training/trainer.py leans on beyond the public interfaces, so that a new version fails here and by name."""

import dataclasses
import inspect
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils.memory import clear_device_cache
from torch.distributed.fsdp import FSDPModule
from transformers import Trainer, TrainerCallback
from trl import DPOTrainer
from trl.kernels.chunked_logprob import TOKEN_CHUNK_SIZE
from trl.trainer import utils as trl_utils
from trl.trainer.dpo_trainer import DataCollatorForPreference
from trl.trainer.utils import FusedCausalLMOutput, add_fused_lm_head

from tune_dlrml.training.pairs.batches import CPU_HEAD_TILE
from tune_dlrml.training.trainer import PreferenceTrainer

OVERRIDDEN = [
    "_compute_loss",
    "_defer_fsdp_gradient_reduction",
    "_load_from_checkpoint",
    "_load_optimizer_and_scheduler",
    "_load_rng_state",
    "_prepare_dataset",
    "_send_telemetry",
    "_sync_replicated_trainable_parameters",
    "training_step",
]


def test_a_tile_of_the_head_is_one_that_a_threads_arena_keeps() -> None:
    assert "_CHUNKED_LOGPROB_CHUNK_SIZE" in inspect.getsource(add_fused_lm_head)
    words = trl_utils._CHUNKED_LOGPROB_CHUNK_SIZE
    assert words == CPU_HEAD_TILE or torch.cuda.is_available()
    assert TOKEN_CHUNK_SIZE * CPU_HEAD_TILE * 4 < 64 * 2**20, "bytes in float32, and glibc's heap of a thread"


@pytest.mark.parametrize(
    ("function", "parameters"),
    [
        (DPOTrainer._compute_loss, ["self", "model", "inputs", "return_outputs"]),
        (DPOTrainer._prepare_dataset, ["self", "dataset", "processing_class", "args", "dataset_name"]),
        (DPOTrainer._send_telemetry, ["self"]),
        (DPOTrainer._set_signature_columns_if_needed, ["self"]),
        (Trainer.get_decay_parameter_names, ["self", "model"]),
        (Trainer.get_optimizer_cls_and_kwargs, ["args", "model"]),
        (Trainer._load_from_checkpoint, ["self", "resume_from_checkpoint", "model"]),
        (Trainer._load_optimizer_and_scheduler, ["self", "checkpoint"]),
        (Trainer._load_rng_state, ["self", "checkpoint"]),
        (Trainer._defer_fsdp_gradient_reduction, ["self"]),
        (Trainer._sync_replicated_trainable_parameters, ["self", "model"]),
        (FSDPModule.reset_iter_state, ["self"]),
        (DPOTrainer.training_step, ["self", "args", "kwargs"]),
        (Trainer.training_step, ["self", "model", "inputs", "num_items_in_batch"]),
        (trl_utils._use_triton, ["device"]),
        (add_fused_lm_head, ["model", "temperature", "cast_lm_head_to_fp32", "outputs"]),
        (TrainerCallback.on_pre_optimizer_step, ["self", "args", "state", "control", "kwargs"]),
        (TrainerCallback.on_step_end, ["self", "args", "state", "control", "kwargs"]),
        (AcceleratorState._reset_state, ["reset_partial_state"]),
        (GradientState._reset_state, []),
        (clear_device_cache, ["garbage_collection"]),
    ],
    ids=lambda value: getattr(value, "__qualname__", None),
)
def test_a_function_takes_the_parameters_it_is_called_with(function: Callable[..., Any], parameters: list[str]) -> None:
    assert list(inspect.signature(function).parameters) == parameters


@pytest.mark.parametrize("name", OVERRIDDEN)
def test_an_overridden_method_is_the_one_that_trl_calls(name: str) -> None:
    assert name in vars(PreferenceTrainer)
    callers = {
        "_compute_loss": DPOTrainer.compute_loss,
        "_defer_fsdp_gradient_reduction": Trainer._run_epoch,
        "_load_from_checkpoint": Trainer.train,
        "_load_optimizer_and_scheduler": Trainer._prepare_for_training,
        "_load_rng_state": Trainer._run_epoch,
        "_prepare_dataset": DPOTrainer.__init__,
        "_send_telemetry": DPOTrainer.__mro__[1].__init__,
        "_sync_replicated_trainable_parameters": Trainer._prepare_for_training,
        "training_step": Trainer._run_epoch,
    }
    assert re.search(rf"self\.{name}\b", inspect.getsource(callers[name]))


def test_the_trainer_overrides_nothing_else_of_trl() -> None:
    own = {name for name in vars(PreferenceTrainer) if hasattr(DPOTrainer, name) and not name.startswith("__")}
    assert own == set(OVERRIDDEN)


def test_a_step_clips_then_calls_back_then_steps_then_counts() -> None:
    source = inspect.getsource(Trainer._run_epoch)
    order = ["_clip_grad_norm(", "on_pre_optimizer_step(", "optimizer.step(", "global_step += 1", "on_step_end("]
    assert [source.count(part) for part in order] == [1] * len(order)
    assert sorted(order, key=source.index) == order


def test_the_last_micro_batch_of_a_step_is_marked_by_sync_gradients() -> None:
    assert isinstance(Accelerator.sync_gradients, property)
    assert inspect.getsource(Trainer._run_epoch).index("_set_sync_gradients(do_sync_step)") < inspect.getsource(
        Trainer._run_epoch
    ).index("self.training_step(")


def test_the_collator_puts_chosen_before_rejected_and_carries_reference_values() -> None:
    assert {"pad_token_id", "max_length", "truncation_mode"} <= {
        field.name for field in dataclasses.fields(DataCollatorForPreference)
    }
    row = {"prompt_ids": [5], "chosen_ids": [6, 7], "rejected_ids": [8], "ref_chosen_logps": -1.0}
    batch = DataCollatorForPreference(pad_token_id=0)([row | {"ref_rejected_logps": -2.0}])
    assert {name: values.tolist() for name, values in batch.items()} == {
        "input_ids": [[5, 6, 7], [5, 8, 0]],
        "attention_mask": [[1, 1, 1], [1, 1, 0]],
        "completion_mask": [[0, 1, 1], [0, 1, 0]],
        "ref_chosen_logps": [-1.0],
        "ref_rejected_logps": [-2.0],
    }


def test_the_head_returns_log_probs_per_token() -> None:
    assert "log_probs" in {field.name for field in dataclasses.fields(FusedCausalLMOutput)}
