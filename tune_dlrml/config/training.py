"""One trial's training, in the names of the libraries that do it."""

import math
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from tune_dlrml.config.lora import LoraSettings
from tune_dlrml.config.numbers import Auto, BelowOne, Natural, NotNegative, Positive
from tune_dlrml.config.quantization import QuantizationSettings
from tune_dlrml.domains import Frozen, law, overlay
from tune_dlrml.losses.scoring_rules.config import WarmUp

Schedule = Literal[
    "linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup", "inverse_sqrt"
]


class TrainingConfig(Frozen):
    """One trial's training, in TRL's and transformers' names and with their defaults unless noted here.

    Exactly one of `max_steps` and `num_train_epochs` is given.
    """

    learning_rate: Positive = 1e-6
    """Peak learning rate."""
    lr_scheduler_type: Schedule = "linear"
    """Its course over the full budget of a trial."""
    warmup_steps: NotNegative = 0
    """Optimizer steps until the peak; below 1 it is a share of the full budget."""
    optim: Literal["adamw_torch", "adamw_torch_fused", "sgd", "adafactor"] = "adamw_torch"
    """The optimizer."""
    weight_decay: NotNegative = 0.0
    """Of matrices alone, as in transformers."""
    adam_beta1: BelowOne = 0.9
    """Decay of AdamW's first moment."""
    adam_beta2: BelowOne = 0.999
    """Decay of its second moment."""
    adam_epsilon: Positive = 1e-8
    """Added to the root of the second moment."""
    max_grad_norm: NotNegative = 1.0
    """Norm that gradients are clipped to; 0 clips none."""
    per_device_train_batch_size: Natural = 8
    """Pairs that a worker trains on at once."""
    per_device_eval_batch_size: Natural = 8
    """Held-out pairs that a worker evaluates at once."""
    gradient_accumulation_steps: Natural = 1
    """Batches per optimizer step."""
    gradient_checkpointing: Auto = "auto"
    """Computes activations twice to save memory; `auto` does so where those of the
    largest batch, measured, would not fit."""
    shared_prompt: Auto = "auto"
    """Computes a prompt once for both completions of its pair; `auto` does so where the model
    allows it and prompts are long enough."""
    max_length: Annotated[int, Field(ge=2)] | None = 1024
    """Tokens of prompt and completion together; null cuts nothing."""
    truncation_mode: Literal["keep_start", "keep_end"] = "keep_start"
    """Which end of a longer pair is kept."""
    max_steps: Natural | None = None
    """Full budget of a trial in optimizer steps; this or num_train_epochs is given."""
    num_train_epochs: Positive | None = None
    """Full budget of a trial in passes over the pairs."""
    bf16: Auto = "auto"
    """Computes in bfloat16, and under LoRA keeps the frozen base in it, too; `auto` does so on GPUs,
    with `quantization`, and on a CPU that is fast at it. The file of a started search has the answer."""
    disable_dropout: bool = True
    """Switches the model's dropout off, as in TRL's DPO."""
    attn_implementation: Literal["eager", "sdpa", "flash_attention_2"] = "sdpa"
    """What computes attention."""
    logging_steps: Natural = 1
    """Optimizer steps that one report averages over."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Of weights, order of pairs and dropout; confirmation trains under others."""
    data_seed: Annotated[int | None, Field(ge=0, lt=2**32, exclude_if=lambda value: value is None)] = None
    """Of the order of pairs alone; null takes `seed`, and so does confirmation."""
    train_sampling_strategy: Annotated[
        Literal["group_by_length", "random"], Field(exclude_if=lambda value: value == "group_by_length")
    ] = "group_by_length"
    """Order of the pairs of an epoch: those of one step alike in length, or by chance."""
    lora: LoraSettings | None = None
    """Low-rank adapters; without it all weights are trained."""
    quantization: Annotated[QuantizationSettings | None, Field(exclude_if=lambda value: value is None)] = None
    """Keeps the base, which is the reference too, in 4 or 8 bits."""
    warm_up: Annotated[WarmUp | None, Field(exclude_if=lambda value: value is None)] = None
    """Fine-tunes the model once, before the first trial, on the chosen answers; all trials, and
    their reference, start from its result."""

    @model_validator(mode="after")
    def _laws(self) -> Self:
        if (self.max_steps is None) == (self.num_train_epochs is None):
            given, key = ("got neither", "") if self.max_steps is None else ("got both", "num_train_epochs")
            raise law(f"exactly one of `max_steps` and `num_train_epochs` must be given, but {given}", key=key)
        if self.lora is not None and self.lora.lora_dropout != 0 and self.disable_dropout:
            raise law(
                f"has no effect while disable_dropout is true, but got {self.lora.lora_dropout}; set that to false",
                key="lora.lora_dropout",
            )
        if self.quantization is not None:
            self._check_quantization(self.quantization)
        return self

    def _check_quantization(self, quantization: QuantizationSettings) -> None:
        if self.lora is None:
            raise law("weights in 4 or 8 bits cannot be trained themselves; give a `lora` section", key="quantization")
        if self.warm_up is not None:
            raise law(
                "merges its adapter into the weights, which is impossible in 4 or 8 bits; warm a model up in a search "
                "without `quantization`, and give the result as `model`",
                key="warm_up",
            )
        if self.lora.init_lora_weights == "orthogonal":
            raise law("needs weights that are not quantized; leave it out", key="lora.init_lora_weights")
        if quantization.bnb_4bit_compute_dtype == "bfloat16" and not self.in_bfloat16:
            raise law("bfloat16 needs `bf16: true`, but it is false", key="quantization.bnb_4bit_compute_dtype")
        if quantization.load_in_8bit and not self.in_bfloat16:
            raise law(
                "LLM.int8() rounds like bfloat16, and differently in training and evaluation; set `bf16: true`",
                key="quantization.load_in_8bit",
            )
        if quantization.load_in_8bit and self.lora.use_dora:
            raise law("PEFT has it for 4 bits, but not for 8; leave it out", key="lora.use_dora")

    @property
    def in_bfloat16(self) -> bool:
        """Whether it computes in bfloat16; an `auto` outside of a search counts as on a GPU."""
        return self.bf16 is not False

    def bitsandbytes(self) -> dict[str, Any] | None:
        """Arguments of transformers' BitsAndBytesConfig; None where the base is not quantized here."""
        return None if self.quantization is None else self.quantization.arguments(bf16=self.in_bfloat16)

    def undividable(self) -> tuple[str, str] | None:
        """Key of the setting that prevents sharding over workers, and the reason; None if none does."""
        if self.lora is None and self.optim == "adafactor":
            return "optim", "adafactor takes means over whole rows and columns of a weight, which no worker has"
        if self.quantization is not None:
            return "quantization", "weights in 4 or 8 bits stay whole on every worker"
        whole = [key for key in ("use_dora", "modules_to_save", "target_parameters") if getattr(self.lora, key, None)]
        if whole:
            return f"lora.{whole[0]}", "such an adapter needs whole weights of the base on every worker"
        return None

    def at(self, point: dict[str, Any]) -> Self:
        """The same settings with the dotted keys of `point` put in, checked again."""
        return type(self).model_validate(overlay(self.model_dump(), point))

    def steps(self, rows: int, workers: int) -> int:
        """Full budget of a trial in optimizer steps, given the number of training pairs."""
        if self.max_steps is not None:
            return self.max_steps
        assert self.num_train_epochs is not None
        return max(1, math.ceil(self.num_train_epochs * rows / self.pairs_per_step(workers)))

    def pairs_per_step(self, workers: int) -> int:
        """Pairs of an optimizer step, over all micro-batches and workers."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps * workers
