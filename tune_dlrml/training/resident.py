"""What stays in a worker between trials: base model, tokenizer, tokenised pairs, reference values."""

from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tune_dlrml.config import TrainingConfig
from tune_dlrml.data import Pairs, batch_plan
from tune_dlrml.errors import InputError
from tune_dlrml.models import load_model, load_tokenizer, parse_model_reference
from tune_dlrml.training.held_out import HeldOut
from tune_dlrml.training.pristine import Pristine
from tune_dlrml.training.reference_logps import ReferenceLogProbs, Row
from tune_dlrml.training.trainer import add_log_prob_head, rows_dataset, tokenize_pairs


class Resident:
    """A loaded model and its data, from which one trial after another starts at the same state.

    Args:
        model: Base model in the precision that `load` chooses.
        tokenizer: The model's own.
        pairs: Preference pairs.
        training: Settings that all trials share: precision, truncation, batch size of the evaluation.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pairs: Pairs, training: TrainingConfig
    ) -> None:
        add_log_prob_head(model)
        model.eval()
        self.model = model
        self.tokenizer = tokenizer
        self.training = training
        self._pristine = Pristine(model, weights=training.lora is None)  # under LoRA the base's weights never change
        self.reference = ReferenceLogProbs(model, tokenizer, training)
        self.train_rows = _tokenised(pairs.train, tokenizer, training, "train")
        eval_rows = _tokenised(pairs.eval, tokenizer, training, "eval")
        self.counts = {
            "train_pairs": float(len(self.train_rows)),
            "eval_pairs": float(len(eval_rows)),
            "dropped_train_pairs": float(len(pairs.train) - len(self.train_rows)),
            "dropped_eval_pairs": float(len(pairs.eval) - len(eval_rows)),
        }
        self.held_out = HeldOut(eval_rows, self.reference, model, tokenizer, training)
        self._datasets: dict[tuple[int, ...], Dataset] = {}

    @classmethod
    def load(cls, model: str, pairs: Pairs, training: TrainingConfig) -> "Resident":
        """Load a model by its reference onto this worker's device.

        Under LoRA with `bf16` the frozen base is kept in bfloat16; weights that are trained are kept in float32.
        """
        reference = parse_model_reference(model)
        dtype = torch.bfloat16 if training.bf16 and training.lora else torch.float32
        loaded = load_model(reference, dtype=dtype, attn_implementation=training.attn_implementation)
        device = f"cuda:{torch.cuda.current_device()}" if torch.cuda.is_available() else "cpu"
        return cls(loaded.to(device), load_tokenizer(reference), pairs, training)

    def rows(self, training: TrainingConfig, *, steps: int, workers: int) -> Dataset:
        """Rows of `steps` optimizer steps in training order, with their reference log-probs."""
        pairs_per_step = training.per_device_train_batch_size * training.gradient_accumulation_steps * workers
        key = (steps, pairs_per_step, training.seed)
        if key not in self._datasets:
            plan = batch_plan(len(self.train_rows), steps=steps, pairs_per_step=pairs_per_step, seed=training.seed)
            planned = [self.train_rows[index] for index in plan]
            self.reference.fill(planned)
            self._datasets = {key: rows_dataset(planned)}
        return self._datasets[key]

    def restore(self) -> None:
        """Put the model back as it was before the first trial."""
        self._pristine.restore()


def _tokenised(pairs: Dataset, tokenizer: PreTrainedTokenizerBase, training: TrainingConfig, section: str) -> list[Row]:
    rows: Sequence[dict[str, Any]] = tokenize_pairs(pairs, tokenizer, training)
    if not rows:
        raise InputError(
            f"dataset.{section}: the prompt of every one of its {len(pairs)} pairs fills max_length="
            f"{training.max_length}; raise training.max_length"
        )
    return list(rows)
