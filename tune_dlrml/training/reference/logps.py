"""Log-probs of the frozen reference: one forward per pair and storage folder, shared by all trials and searches.

They depend on the base model, the tokenizer and the truncation only, never on a trial's loss, rate or adapter.
"""

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tune_dlrml.config import TrainingConfig
from tune_dlrml.errors import InputError
from tune_dlrml.models.fingerprints import model_fingerprint, template_fingerprint, tokenizer_fingerprint
from tune_dlrml.models.loading import ModelReference
from tune_dlrml.models.quantization import described
from tune_dlrml.training.full_precision import in_float32
from tune_dlrml.training.pairs.batches import Batch, pair_outputs
from tune_dlrml.training.pairs.log_prob_head import label_log_probs
from tune_dlrml.training.pairs.packed import REFERENCE
from tune_dlrml.training.ranks import agreed, from_all, is_rank_zero, on_rank_zero, rank_and_world
from tune_dlrml.training.reference.cache import LogProbs, ReferenceCache, ReferenceKey, RowId, row_id
from tune_dlrml.training.sharding.shards import in_step

Row = dict[str, Any]
Rows = Mapping[RowId, Row]

PATIENCE_S = 30.0
"""How long rank 0 waits for the lock before it signals the other ranks that it is still waiting: their collective must
not time out because another group is computing."""
BATCHES_A_SAVE = 64
"""Batches of each rank between two saves: what a group that dies has computed in vain."""
ASKED, PRIME = 16, 7919
"""Tokens that a model is asked about, and the step from one to the next in its vocabulary."""

_log = logging.getLogger(__name__)


class ReferenceLogProbs:
    """Adds the columns `REFERENCE` (nats, float32) to rows of token ids, each row once.

    Args:
        model: The base model without an adapter, its weights pristine whenever `fill` is called.
        training: Truncation, precision and the batch size of the forward.
        collate: Makes the batch that `pair_outputs` takes out of rows.
        cache: The rows that were computed before, by whatever group; None keeps them in memory only.
        beyond: Whether the parts of the log-probs beyond the public length are added, too; as in the key of the cache.

    Attributes:
        tokens_forwarded: Tokens that all ranks of this group together ran through the reference, without padding.
    """

    def __init__(
        self,
        model: nn.Module,
        training: TrainingConfig,
        collate: Callable[[list[Row]], Batch],
        cache: ReferenceCache | None = None,
        *,
        beyond: bool = False,
    ) -> None:
        self._model = model
        self._training = training
        self._collate = collate
        self._cache = cache
        self._beyond = beyond
        self.tokens_forwarded = 0

    def fill(self, rows: Iterable[Row]) -> None:
        """Complete the rows that lack their reference; all ranks call it with the same rows.

        Raises:
            InputError: The reference gives a value that is not finite.
            StorageError: The folder of the cache cannot be read or written.
        """
        lacking: dict[RowId, list[Row]] = {}
        for row in {id(row): row for row in rows if "ref_chosen_logps" not in row}.values():
            lacking.setdefault(row_id(row), []).append(row)
        if not lacking:
            return
        values = self._values({name: same[0] for name, same in lacking.items()})
        for name, same in lacking.items():
            for row in same:
                row |= zip(REFERENCE, values[name], strict=False)

    def tokens_of(self, rows: Iterable[Row]) -> int:
        """Tokens that the reference runs over for rows whose values are not known."""
        return sum(row_tokens(row, self._training.max_length) for row in rows)

    def _values(self, rows: Rows) -> dict[RowId, LogProbs]:
        if self._cache is None:
            return self._compute(rows)
        known = self._stored(self._cache, rows)
        if len(known) < len(rows):
            with _right_to_add(self._cache):
                known = self._stored(self._cache, rows)  # another group may have added them while this one waited
                known |= self._compute({name: row for name, row in rows.items() if name not in known})
        return known

    def _stored(self, cache: ReferenceCache, rows: Rows) -> dict[RowId, LogProbs]:
        def read() -> dict[RowId, LogProbs]:
            stored = cache.read()
            return {name: stored[name] for name in rows if name in stored}

        return on_rank_zero(read)

    def _compute(self, rows: Rows) -> dict[RowId, LogProbs]:
        """Values of all rows, the batches dealt out to the ranks.

        They are cut before they are dealt out, so that a value does not depend on how many ranks there are; the longest
        rows come first, so that a batch wastes little padding and ranks have equal work.
        """
        ordered = sorted(rows, key=lambda name: row_length(rows[name]), reverse=True)
        size, (rank, world) = self._training.per_device_eval_batch_size, rank_and_world()
        batches = [ordered[start : start + size] for start in range(0, len(ordered), size)]
        values: dict[RowId, LogProbs] = {}
        for start in range(0, len(batches), world * BATCHES_A_SAVE):
            turn = batches[start : start + world * BATCHES_A_SAVE]
            new: dict[RowId, LogProbs] = {}
            for part in from_all(partial(self._forward, turn[rank::world], rows)):
                new |= part
            self.tokens_forwarded += self.tokens_of(rows[name] for name in new)
            _refuse_nonfinite(new)
            self._store(new)
            values |= new
        return values

    def _forward(self, batches: Sequence[Sequence[RowId]], rows: Rows) -> dict[RowId, LogProbs]:
        def values(names: Sequence[RowId]) -> dict[RowId, LogProbs]:
            batch = to_device(self._collate([rows[name] for name in names]), self._model)
            with torch.no_grad(), computing(self._model, self._training):
                outputs = pair_outputs(self._model, batch, beyond=self._beyond)
            columns = torch.stack([*outputs[:2], *(outputs.beyond or ())])
            return dict(zip(names, map(tuple, columns.T.tolist()), strict=True))

        found = in_step(self._model, values, batches, spare=lambda: values([*rows][:1]))
        return {name: pair for part in found for name, pair in part.items()}

    def _store(self, values: Mapping[RowId, LogProbs]) -> None:
        cache = self._cache
        if cache is not None:
            on_rank_zero(lambda: cache.add(values))


def reference_cache(
    folder: Path,
    reference: ModelReference,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    training: TrainingConfig,
    form: str,
    *,
    beyond: bool = False,
) -> ReferenceCache:
    """The cache of a loaded model, the same on every rank.

    Args:
        folder: Of the caches of all models.
        reference: Where the model came from.
        model: In the precision that it computes in.
        tokenizer: The model's own.
        training: Truncation and precision.
        form: How pairs go through it.
        beyond: Whether it has the parts of the log-probs beyond the public length.
    """
    key = agreed(lambda: reference_key(reference, model, tokenizer, training, form, beyond=beyond))
    return ReferenceCache(folder, key)


def reference_key(
    reference: ModelReference,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    training: TrainingConfig,
    form: str,
    *,
    beyond: bool = False,
) -> ReferenceKey:
    """What the reference log-probs of a loaded model depend on, on the device where it is; for all ranks to call."""
    return ReferenceKey(
        model=on_rank_zero(lambda: model_fingerprint(reference)),  # reads the weights' files whole
        software=f"transformers {metadata.version('transformers')}, torch {torch.__version__}",
        dtype=str(model.dtype).removeprefix("torch."),
        quantization=described(model),
        autocast=training.in_bfloat16,
        tokenizer=tokenizer_fingerprint(tokenizer),
        chat_template=template_fingerprint(tokenizer),
        max_length=training.max_length,
        truncation_mode=training.truncation_mode,
        form=form,
        attention=training.attn_implementation,
        device=_kind(next(model.parameters()).device),
        answers=_answers(model),
        beyond=beyond,
    )


def _kind(device: torch.device) -> str:
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return f"{device.type} {torch.backends.cpu.get_cpu_capability()}"


def _answers(model: PreTrainedModel) -> tuple[float, ...]:
    """Log-probs of tokens from all over the vocabulary, to a tenth of a nat, which float32 gives everywhere alike."""
    vocabulary = model.config.get_text_config().vocab_size
    ids = torch.tensor([[index * PRIME % vocabulary for index in range(1, ASKED + 2)]])
    ids = ids.to(next(model.parameters()).device)
    with torch.no_grad(), in_float32(model):
        logits = model(input_ids=ids, use_cache=False).logits
    return tuple(round(value, 1) for value in label_log_probs(logits[:, :-1], ids[:, 1:])[0].tolist())


@contextmanager
def _right_to_add(cache: ReferenceCache) -> Iterator[None]:
    """Hold the right of one group to add rows; rank 0 holds it for all."""
    try:
        while not on_rank_zero(lambda: cache.acquire(PATIENCE_S)):
            if is_rank_zero():
                _log.info("waiting for another worker group to compute reference log-probs into %s", cache.path)
        yield
    finally:
        if is_rank_zero():
            cache.release()


def _refuse_nonfinite(values: Mapping[RowId, LogProbs]) -> None:
    bad = [pair for pair in values.values() if not all(map(math.isfinite, pair))]
    if bad:
        chosen, rejected = bad[0][:2]
        raise InputError(
            f"the reference model's log-probs must be finite, but for {len(bad)} of {len(values)} pairs they are not "
            f"(the first: chosen {chosen}, rejected {rejected}), and no loss can be trained against them. Its weights "
            "are damaged or overflow in this precision: try another model, or training.bf16: false."
        )


def row_length(row: Row) -> int:
    """Tokens of the longer sequence of a pair, before truncation."""
    return len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"]))


def row_tokens(row: Row, max_length: int | None) -> int:
    """Tokens of both sequences of a pair after truncation, each with its prompt."""
    both = [len(row["prompt_ids"]) + len(row[completion]) for completion in ("chosen_ids", "rejected_ids")]
    return sum(both if max_length is None else (min(length, max_length) for length in both))


def by_length(rows: Sequence[Row]) -> list[int]:
    """Positions of the rows, the longest pair first; ties keep their order."""
    return sorted(range(len(rows)), key=lambda index: -row_length(rows[index]))


def to_device(batch: Batch, model: nn.Module) -> Batch:
    """The batch on the model's device."""
    device = next(model.parameters()).device
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}


def computing(model: nn.Module, training: TrainingConfig) -> torch.autocast:
    """The precision in which a trial trains, as Accelerate sets it around the policy's forward."""
    return torch.autocast(next(model.parameters()).device.type, dtype=torch.bfloat16, enabled=training.in_bfloat16)
