"""A trial's settings as arguments of TRL, PEFT and torch: for the trainer, the adapter and the optimizer."""

import warnings

import torch
from peft import LoraConfig
from torch import nn
from transformers import Trainer
from trl import DPOConfig

from tune_dlrml.config import LoraSettings, TrainingConfig


def lora_config(lora: LoraSettings) -> LoraConfig:
    """PEFT's configuration of the adapter that a trial trains."""
    return LoraConfig(**lora.model_dump(), task_type="CAUSAL_LM")


def trl_config(
    training: TrainingConfig, *, steps: int, output_dir: str, on_cpu: bool, gradient_checkpointing: bool
) -> DPOConfig:
    """TRL's arguments for one trial: no logging, saving or evaluation of its own, data in the order given."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers has renamed gradient_checkpointing, TRL 1.16 has not
        return _trl_config(
            training,
            steps=steps,
            output_dir=output_dir,
            on_cpu=on_cpu,
            gradient_checkpointing=gradient_checkpointing,
        )


def _trl_config(training: TrainingConfig, *, steps: int, output_dir: str, on_cpu: bool, **decided: bool) -> DPOConfig:
    return DPOConfig(
        output_dir=output_dir,
        max_steps=steps,
        learning_rate=training.learning_rate,
        lr_scheduler_type=training.lr_scheduler_type,
        warmup_steps=training.warmup_steps,
        optim=training.optim,
        weight_decay=training.weight_decay,
        adam_beta1=training.adam_beta1,
        adam_beta2=training.adam_beta2,
        adam_epsilon=training.adam_epsilon,
        max_grad_norm=training.max_grad_norm,
        per_device_train_batch_size=training.per_device_train_batch_size,
        gradient_accumulation_steps=training.gradient_accumulation_steps,
        max_length=training.max_length,
        truncation_mode=training.truncation_mode,
        bf16=training.in_bfloat16,
        disable_dropout=training.disable_dropout,
        seed=training.seed,
        use_cpu=on_cpu,
        dataloader_pin_memory=not on_cpu,
        remove_unused_columns=False,  # TRL keeps what its own collator takes
        train_sampling_strategy="sequential",
        ddp_find_unused_parameters=False,
        logging_nan_inf_filter=False,
        logging_strategy="no",
        save_strategy="no",
        eval_strategy="no",
        report_to=[],
        disable_tqdm=True,
        **decided,
    )


def optimizer_of(model: nn.Module, training: TrainingConfig) -> torch.optim.Optimizer:
    """The optimizer that a trial of these settings has, for weights that are trained outside a trainer."""
    on_cpu = next(model.parameters()).device.type == "cpu"
    args = trl_config(training, steps=1, output_dir=".", on_cpu=on_cpu, gradient_checkpointing=False)
    kind, options = Trainer.get_optimizer_cls_and_kwargs(args, model)
    decayed = {*Trainer.get_decay_parameter_names(None, model)}
    trained = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    groups = [
        {"params": [w for name, w in trained if name in decayed], "weight_decay": training.weight_decay},
        {"params": [w for name, w in trained if name not in decayed], "weight_decay": 0.0},
    ]
    optimizer: torch.optim.Optimizer = kind(groups, **options)
    return optimizer
