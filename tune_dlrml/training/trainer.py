"""The adapter to TRL's trainer: transformers' loop, with this project's losses.

TRL keeps its losses in one chain inside `DPOTrainer._compute_loss`, without a hook, so that method is overridden whole.
Every private name of TRL and transformers that is leaned on stands here, in `arguments` or in `batches`; a test pins
their signatures.

Shape legend: B = preference pairs in the batch.
"""

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils.memory import clear_device_cache
from datasets import Dataset
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback, TrainerCallback
from trl import DPOConfig, DPOTrainer

from tune_dlrml.config import LoraSettings
from tune_dlrml.errors import InputError
from tune_dlrml.losses.preference import PreferenceLoss
from tune_dlrml.models.quantization import flags_hidden
from tune_dlrml.training.adapters import adapted, leave_casting_to_autocast
from tune_dlrml.training.checkpoint import storing
from tune_dlrml.training.divergence import StepStats
from tune_dlrml.training.pairs.batches import (
    Batch,
    PairCollator,
    pair_outputs,
    pairs_of,
    router_loss_weight,
)
from tune_dlrml.training.sft import ChosenAnswers
from tune_dlrml.training.sharding.shards import Replicated, is_sharded, local_part, settle, shallow_copy
from tune_dlrml.training.step_sums import pair_sums, step_stats
from tune_dlrml.training.trainer_state import TrainerState

START_MARGIN = {"float32": 5e-5, "bf16": 0.4}
"""Nats by which rounding may move a margin from 0 before the first step, for the square root of a pair's tokens.

SmolLM2-135M in batches of another make-up has 0.07 in bfloat16, root mean square, and up to 0.19, in float32 6e-7 and
up to 2e-6, on a CPU, packed or padded. A loose bound is enough in bfloat16: the key of stored reference values checks
more strictly that they are this model's.
"""


OnStep = Callable[[StepStats], bool]
"""Called on every rank after each optimizer step with the same numbers; says whether to go on."""


class PreferenceTrainer(DPOTrainer):  # type: ignore[misc]  # mypy skips trl, see pyproject.toml
    """Trains one trial on a resident model, which its owner puts back afterwards.

    The reference log-probs come with the rows, if at all, so no step runs the reference. A learnable beta_mix lies
    outside the wrapped model, where neither DDP nor the Trainer sees it: its gradient is averaged over the ranks here,
    and its own Adam steps it at a constant rate, without weight decay or clipping.

    Args:
        model: The resident base model, patched by `add_log_prob_head`.
        args: From `trl_config`.
        rows: Token ids and reference log-probs in training order; without those, trials look at no reference.
        collate: Makes the batches.
        tokenizer: The model's own.
        loss: The trial's loss.
        mix_learning_rate: Constant rate of a learnable beta_mix; None without one.
        skip_nonfinite: Leave a step with a non-finite gradient unapplied on every rank.
        on_step: Told every optimizer step.
        sft: Term on the chosen answers beside the loss; None without one.
        weighted: Whether the loss of a pair is multiplied by WPO's weight; the term on chosen answers is not.
        ld_alpha: Weight of the log-probs beyond the public length of a pair, in the loss alone; None weighs nothing.
        lora: Adapter to train; None trains all weights.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        args: DPOConfig,
        rows: Dataset,
        collate: PairCollator,
        tokenizer: PreTrainedTokenizerBase,
        loss: PreferenceLoss,
        *,
        mix_learning_rate: float | None,
        skip_nonfinite: bool,
        on_step: OnStep,
        sft: ChosenAnswers | None,
        weighted: bool = False,
        ld_alpha: float | None = None,
        lora: LoraSettings | None,
    ) -> None:
        log_prob_head = model.forward
        settle(model)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT and TRL comment on choices made here on purpose
            reference = shallow_copy(model)
            policy = model if lora is None else adapted(model, lora, seed=args.seed)
            with flags_hidden(model):
                super().__init__(
                    model=policy,
                    # Unless it sees a reference, TRL loads a second model; this shallow copy shares every weight.
                    ref_model=reference,
                    args=args,
                    train_dataset=rows,
                    data_collator=collate,
                    processing_class=tokenizer,
                )
        # TRL patches the head again for every trainer, with statistics that are unused here; one plain patch is enough.
        model.forward = log_prob_head
        self.ref_model = None
        if args.bf16:
            leave_casting_to_autocast(self.model)
        self.remove_callback(PrinterCallback)
        self.preference_loss = loss.to(args.device)
        self._skip_nonfinite = skip_nonfinite
        self._sft, self._ld_alpha, self._weighted = sft, ld_alpha, weighted
        self._router_weight = router_loss_weight(model)
        self._trains_adapter = lora is not None
        self._starts_at_reference = args.disable_dropout
        self._micro_batches: list[Tensor] = []
        self._step = Tensor()
        self._divided = is_sharded(model) and lora is None  # what is trained: no rank has all of it
        self._adapter_beside_shards: DistributedDataParallel | None = None
        self._grad_norm = float("nan")
        self._mix_optimizer = (
            None if loss.mix is None else torch.optim.Adam(loss.mix.parameters(), lr=mix_learning_rate or 0.0)
        )
        self.add_callback(_StepHook(self, on_step))

    def _send_telemetry(self) -> None:
        """Send no telemetry to the hub, as TRL does for every trainer: a search makes hundreds."""

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset

    def _compute_loss(self, model: nn.Module, inputs: Batch, return_outputs: bool) -> Tensor:
        assert not return_outputs, "held-out evaluation does not go through the trainer"
        with nullcontext() if self._sft is None else self._sft.watching():
            outputs = pair_outputs(
                model,
                inputs,
                beyond=self._ld_alpha is not None,
                weights=self._weighted,
                routers=bool(self._router_weight),
            )
        pairs, compared = pairs_of(inputs, outputs), "ref_chosen_logps" in inputs
        if self.state.global_step == 0 and compared:
            self._check_start(pairs.margin_B.detach(), inputs["chosen_lengths"] + inputs["rejected_lengths"])
        trained = pairs if self._ld_alpha is None else pairs_of(inputs, outputs, ld_alpha=self._ld_alpha)
        self.preference_loss.observe(trained)
        loss_B = self.preference_loss(trained)
        if outputs.weight_B is not None:
            loss_B = outputs.weight_B * loss_B
        sft_B = loss_B.new_zeros(()) if self._sft is None else self._sft.losses(inputs)
        margin_B = pairs.margin_B if compared else pairs.policy_margin_B
        seen = (loss_B, margin_B, outputs.chosen_B, outputs.rejected_B, sft_B)
        self._micro_batches.append(pair_sums(*(each.detach() for each in seen), tokens=inputs["tokens"]))
        loss = loss_B.mean() if self._sft is None else loss_B.mean() + self._sft.weight * sft_B.mean()
        return loss if outputs.router_loss is None else loss + self._router_weight * outputs.router_loss

    def _check_start(self, margin_B: Tensor, tokens_B: Tensor) -> None:
        """Before the first step the policy is its reference, so that every margin is 0 but for rounding.

        Raises:
            InputError: It is not.
        """
        limit_B = START_MARGIN["bf16" if self.args.bf16 else "float32"] * tokens_B.sqrt()
        beyond = margin_B.abs() > limit_B
        if self._starts_at_reference and bool(beyond.any()):
            worst = int((margin_B.abs() / limit_B).argmax())
            raise InputError(
                "before the first step the policy is its reference, and the margin of every pair must be 0 within what "
                f"rounding gives, but that of {int(beyond.sum())} of {len(margin_B)} pairs is not (the worst: "
                f"{float(margin_B[worst]):.4g} nats, where {float(limit_B[worst]):.2g} are allowed). Two forwards of "
                "the same weights gave other log-probs: either the model draws random numbers that "
                "training.disable_dropout does not stop, or the folder `reference` of the storage folder holds values "
                "that were computed differently; without that folder they are computed again."
            )

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """One micro-batch; the last of a step also closes the step's books, before the gradient is clipped."""
        last, beside = self.accelerator.sync_gradients, self._adapter_beside_shards
        if beside is not None:
            with nullcontext() if last else beside.no_sync():
                beside()
        loss: Tensor = super().training_step(*args, **kwargs)
        if last:
            self._close_step()
        return loss

    def _close_step(self) -> None:
        mix = self.preference_loss.mix
        if mix is not None and dist.is_initialized():
            dist.all_reduce(mix.theta.grad)
            mix.theta.grad /= dist.get_world_size()
        gradients = [local_part(p.grad) for p in self.model.parameters() if p.grad is not None]
        if mix is not None and (not self._divided or self.args.process_index == 0):
            gradients += [p.grad for p in mix.parameters() if p.grad is not None]
        norms = torch.stack(torch._foreach_norm(gradients)).double()
        entries = sum(gradient.numel() for gradient in gradients)
        bad = torch.zeros((), dtype=torch.float64, device=norms.device)
        if not norms.isfinite().all():
            bad = sum((~gradient.isfinite()).sum() for gradient in gradients).double()
        sums = torch.cat(
            [torch.stack(self._micro_batches).sum(dim=0), torch.stack([bad, torch.full_like(bad, entries)])]
        )
        self._micro_batches.clear()
        squares = norms.square().sum()
        if self._divided:
            dist.all_reduce(squares)
        self._grad_norm = (squares.sqrt() if self._divided else norms.norm()).item()
        if dist.is_initialized():
            dist.all_reduce(sums)
        self._step = sums

    def _sync_replicated_trainable_parameters(self, model: nn.Module) -> None:
        """Let DDP average the gradients of an adapter, as it would those of a model that every rank has whole.

        The hooks that transformers would put on the adapter keep it, its gradients and moments for ever.
        """
        adapter = [p for p in model.parameters() if p.requires_grad and not isinstance(p, DTensor)]
        if adapter:
            self._adapter_beside_shards = DistributedDataParallel(Replicated(adapter))

    def _defer_fsdp_gradient_reduction(self) -> AbstractContextManager[None]:
        """Reduce every micro-batch at once: until the last one, each rank would hold the gradients of all weights."""
        return nullcontext()

    def before_optimizer_step(self) -> None:
        """Drop a non-finite gradient or step beta_mix with a finite one; the policy's optimizer follows."""
        apply = self.last_step(0.0).finite or not self._skip_nonfinite
        if not apply:
            self.model.zero_grad(set_to_none=True)  # AdamW leaves parameters without a gradient as they are
        if self._mix_optimizer is not None:
            if apply:
                self._mix_optimizer.step()
            self._mix_optimizer.zero_grad()

    def write_state(self, folder: Path) -> None:
        """Write this rank's part of a checkpoint, as `train(resume_from_checkpoint=...)` reads it.

        Raises:
            OSError: A file cannot be written.
        """
        self._trainer_state().write(folder)
        if self.args.process_index == 0:
            self.state.save_to_json(str(folder / "trainer_state.json"))

    def _trainer_state(self) -> TrainerState:
        mix = None if self._mix_optimizer is None else (self.preference_loss.mix, self._mix_optimizer)
        return TrainerState(
            self.model,
            self.optimizer,
            self.lr_scheduler,
            mix,
            dict(self.preference_loss.named_buffers()),
            adapter=self._trains_adapter,
            rank=self.args.process_index,
            world=self.args.world_size,
        )

    def _load_from_checkpoint(self, checkpoint: str, *args: Any, **kwargs: Any) -> None:
        with storing(Path(checkpoint)):
            if self._divided:
                self._trainer_state().read_weights(Path(checkpoint))
            else:
                super()._load_from_checkpoint(checkpoint, *args, **kwargs)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with storing(Path(checkpoint or ".")):
            super()._load_rng_state(checkpoint)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        state, folder = self._trainer_state(), Path(checkpoint)
        state.refuse_other_division(folder)
        with storing(folder):
            super()._load_optimizer_and_scheduler(checkpoint)
            state.read_optimizers(folder)

    def last_step(self, learning_rate: float) -> StepStats:
        """What the step just closed did, the same on every rank."""
        return step_stats(
            self._step, step=self.state.global_step, grad_norm=self._grad_norm, learning_rate=learning_rate
        )


class _StepHook(TrainerCallback):  # type: ignore[misc]  # mypy skips transformers, see pyproject.toml
    """Turns transformers' callbacks into one call an optimizer step."""

    def __init__(self, trainer: PreferenceTrainer, on_step: OnStep) -> None:
        self._trainer = trainer
        self._on_step = on_step
        self._learning_rate = 0.0

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._learning_rate = self._trainer.optimizer.param_groups[0]["lr"]
        self._trainer.before_optimizer_step()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self._on_step(self._trainer.last_step(self._learning_rate)):
            control.should_training_stop = True


def release_trainer() -> None:
    """Free what the last trainer of this process held; call it when nothing refers to that trainer any more.

    PartialState, which owns the process group, stays; the other states of Accelerate belong to one trainer. Trainer and
    model refer to each other, so only a collection frees a trial's adapter and optimizer.
    """
    AcceleratorState._reset_state()
    GradientState._reset_state()
    clear_device_cache(garbage_collection=True)
