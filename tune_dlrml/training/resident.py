"""What stays in a worker between trials: base model, tokenizer, pairs as token ids, reference values."""

from collections.abc import Callable, Hashable
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from datasets import Dataset
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tune_dlrml.config import TrainingConfig
from tune_dlrml.data import Pairs, training_order
from tune_dlrml.losses.shape import Geometry
from tune_dlrml.models.loading import load_model, load_tokenizer, parse_model_reference
from tune_dlrml.training.activations import Activations
from tune_dlrml.training.completions import HeldOutCompletions
from tune_dlrml.training.group_spec import Completer
from tune_dlrml.training.held_out import HeldOut, HeldOutOfPolicy
from tune_dlrml.training.memory.rest import kept_dtype
from tune_dlrml.training.pairs.batches import add_log_prob_head, rows_dataset
from tune_dlrml.training.pairs.form import choose_form
from tune_dlrml.training.pairs.log_prob_head import settle_log_prob_head
from tune_dlrml.training.pristine import Pristine
from tune_dlrml.training.ranks import rank_and_world
from tune_dlrml.training.reference.cache import ReferenceCache
from tune_dlrml.training.reference.logps import ReferenceLogProbs, Row, reference_cache, row_length
from tune_dlrml.training.sharding.choice import check_division, choose_sharding
from tune_dlrml.training.sharding.shards import settle


class Resident:
    """A loaded model and its data, from which one trial after another starts at the same state.

    Args:
        model: Base model in the precision that `load` chooses.
        tokenizer: The model's own.
        pairs: Preference pairs as token ids.
        training: Settings that all trials share: precision, truncation, batch size of the evaluation.
        cache: Of the reference log-probs that were computed before by this model, keyed by the form of the pairs as
            well; None keeps them in memory only.
        with_reference: Whether trials look at the reference; without it the reference is not run.
        completer: Held-out prompts that trials complete; None where there are none.
        beyond: Whether trials weigh the tokens beyond the public length of a pair (`ld_alpha`), as the cache does.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        pairs: Pairs,
        training: TrainingConfig,
        cache: Callable[[str], ReferenceCache] | None = None,
        *,
        with_reference: bool = True,
        completer: Completer | None = None,
        beyond: bool = False,
    ) -> None:
        add_log_prob_head(model)
        model.eval()
        self.model = model
        self.tokenizer = tokenizer
        self.training = training
        self.train_rows, eval_rows = list[Row](pairs.train), list[Row](pairs.eval)
        head = settle_log_prob_head(model, self.train_rows)
        self.form = choose_form(model, tokenizer, training, self.train_rows, eval_rows)
        self.activations = Activations(model, training, self.form.collate, self.train_rows)
        self._pristine = Pristine(model, weights=training.lora is None)  # under LoRA the base's weights never change
        stored = None if cache is None else cache(f"{'packed' if self.form.packed else 'padded'}, {head}")
        self.reference = ReferenceLogProbs(model, training, self.form.collate, stored, beyond=beyond)
        self.counts = {
            "train_pairs": float(len(self.train_rows)),
            "eval_pairs": float(len(eval_rows)),
            "shared_prompt": float(self.form.packed),
        }
        self._eval_tokens = self.reference.tokens_of(eval_rows)
        self._told_tokens = 0
        self.with_reference = with_reference
        self.held_out = (
            HeldOut(eval_rows, self.reference, model, self.form, training)
            if with_reference
            else HeldOutOfPolicy(eval_rows, model, self.form, training)
        )
        self.completions = None if completer is None else HeldOutCompletions(completer, model, tokenizer, training)
        settle(model)
        self._datasets: dict[Hashable, Dataset] = {}

    @classmethod
    def load(
        cls,
        model: str,
        pairs: Pairs,
        training: TrainingConfig,
        *,
        references: Path | None = None,
        fsdp: Literal["auto"] | bool = False,
        with_reference: bool = True,
        completer: Completer | None = None,
        beyond: bool = False,
    ) -> "Resident":
        """Load a model by its reference onto this worker's device.

        Args:
            model: Model reference.
            pairs: Preference pairs as token ids.
            training: Settings that all trials share.
            references: Folder with the reference log-probs of all models; None keeps them in memory only.
            fsdp: Whether the ranks hold the model together; `auto` where it is too large for one device.
            with_reference: Whether trials look at the reference; without it the reference is not run.
            completer: Held-out prompts that trials complete; None where there are none.
            beyond: Whether trials weigh the tokens beyond the public length of a pair.
        """
        reference = parse_model_reference(model)
        dtype = kept_dtype(training)
        sharded = choose_sharding(fsdp, reference, training, dtype)
        shards = rank_and_world()[1] if sharded else 1
        on_device = load_model(
            reference,
            dtype=dtype,
            attn_implementation=training.attn_implementation,
            quantization=training.bitsandbytes(),
            shards=shards,
            device=f"cuda:{torch.cuda.current_device()}" if torch.cuda.is_available() else "cpu",
        )
        tokenizer = load_tokenizer(reference)
        if sharded:
            check_division(on_device)
        cache = None
        if references is not None:
            cache = partial(reference_cache, references, reference, on_device, tokenizer, training, beyond=beyond)
        return cls(
            on_device,
            tokenizer,
            pairs,
            training,
            cache,
            with_reference=with_reference,
            completer=completer,
            beyond=beyond,
        )

    def rows(self, training: TrainingConfig, *, steps: int, workers: int) -> Dataset:
        """Rows of `steps` optimizer steps in training order, with their reference log-probs if trials look at them."""
        order = (training.seed, training.data_seed, training.train_sampling_strategy)
        key = (steps, training.pairs_per_step(workers), order)
        if key not in self._datasets:
            planned = [self.train_rows[index] for index in self.plan(training, steps=steps, workers=workers)]
            if self.with_reference:
                self.reference.fill(planned)
            self._datasets = {key: rows_dataset(planned)}
        return self._datasets[key]

    def plan(self, training: TrainingConfig, *, steps: int, workers: int) -> list[int]:
        """Indices into `train_rows` in training order, for all ranks together."""
        lengths = [row_length(row) for row in self.train_rows]
        return training_order(lengths, training, steps=steps, workers=workers)

    def facts(self, training: TrainingConfig, *, steps: int, workers: int) -> dict[str, float]:
        """What a trial has to say before it begins: counts of its rows, how it is computed, what that saved.

        `reference_tokens` ran through the reference since this was last asked. `reference_tokens_saved` are those of
        one pass over the trial's training and held-out rows that it was spared. `activation_gib` is what the largest
        micro-batch needs for its backward pass without gradient checkpointing.
        """
        needed = self.activations.needed(training.per_device_train_batch_size)
        return (
            self.counts
            | self._reference_tokens(training, steps=steps, workers=workers)
            | {"gradient_checkpointing": float(self.activations.need_checkpointing(training))}
            | ({} if needed is None else {"activation_gib": needed / 2**30})
        )

    def _reference_tokens(self, training: TrainingConfig, *, steps: int, workers: int) -> dict[str, float]:
        if not self.with_reference:
            return {"reference_tokens": 0.0, "reference_tokens_saved": 0.0}
        rows = {*self.plan(training, steps=steps, workers=workers)}
        one_pass = self._eval_tokens + self.reference.tokens_of(self.train_rows[index] for index in rows)
        forwarded = self.reference.tokens_forwarded - self._told_tokens
        self._told_tokens += forwarded
        return {"reference_tokens": float(forwarded), "reference_tokens_saved": float(max(0, one_pass - forwarded))}

    def untrained(self) -> dict[str, float]:
        """The held-out numbers of the base model that are known already."""
        return self.held_out.untrained() | ({} if self.completions is None else self.completions.untrained())

    def evaluate(self, policy: nn.Module, *, beta_kl: float, geometry: Geometry | None) -> dict[str, float]:
        """The held-out numbers of a policy.

        Raises:
            NotFiniteError: One is not finite.
            InputError: The reward of its completions is at fault.
        """
        found = self.held_out.evaluate(policy, beta_kl=beta_kl, geometry=geometry)
        return found | ({} if self.completions is None else self.completions.evaluate(policy))

    def restore(self) -> None:
        """Put the model back as it was before the first trial."""
        self._pristine.restore()
