"""Held-out numbers of a policy that do not depend on its loss: accuracies, margins, trapped pairs, KL to the reference.

Shape legend: B = pairs in a batch, N = held-out pairs, C = completion tokens of a batch, V = vocabulary.
"""

import math

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import PreTrainedModel

from tune_dlrml.config import TrainingConfig
from tune_dlrml.errors import NotFiniteError
from tune_dlrml.losses.dpo.function import per_token
from tune_dlrml.losses.shape import Geometry
from tune_dlrml.metrics import MARGIN_QUANTILES, UNTRAINED
from tune_dlrml.training.estimates import auc, length_controlled_accuracy, mean, right, separation, with_errors
from tune_dlrml.training.full_precision import in_float32
from tune_dlrml.training.pairs.batches import Batch, pair_log_probs
from tune_dlrml.training.pairs.form import CompletionBatch, PairForm, completion_batches
from tune_dlrml.training.ranks import rank_and_world
from tune_dlrml.training.reference.logps import ReferenceLogProbs, Row, by_length, computing, to_device
from tune_dlrml.training.sharding.shards import in_step

KL_ROWS = 16
"""Held-out pairs whose chosen completions `eval_kl` is computed on, the first ones of the set."""

KL_TILE = 128
"""Tokens whose logits are compared at a time, so that no (C, V) of float32 comes and goes; see `allocator`."""


class HeldOutOfPolicy:
    """The held-out pairs, resident and split over the ranks, for a search without a reference.

    Margins are then the policy's own log-probabilities per token, chosen minus rejected.

    Args:
        rows: Token ids of every held-out pair.
        model: The base model without an adapter.
        form: How pairs go through it.
        training: Truncation, precision and batch size.

    Attributes:
        margins: Of every pair at the last evaluation.
    """

    def __init__(self, rows: list[Row], model: PreTrainedModel, form: PairForm, training: TrainingConfig) -> None:
        rank, world = rank_and_world()
        self._training = training
        self.margins: list[float] = []
        mine = [rows[index] for index in by_length(rows)][rank::world]
        size = training.per_device_eval_batch_size
        self._batches = [to_device(form.collate(mine[i : i + size]), model) for i in range(0, len(mine), size)]
        self._spare = to_device(form.collate(rows[:1]), model)

    def untrained(self) -> dict[str, float]:
        """The numbers of the base model that are known without a forward pass."""
        return {}

    def evaluate(self, model: nn.Module, *, beta_kl: float, geometry: Geometry | None) -> dict[str, float]:
        """Held-out numbers of the policy; accuracy counts a tie one half, margins are in nats a token.

        Raises:
            NotFiniteError: A margin is not finite.
        """
        model.eval()
        chosen_N, rejected_N, chosen_mean_N, rejected_mean_N, _ = self._measured(model)
        margin_N = chosen_mean_N - rejected_mean_N
        self.margins = margin_N.tolist()
        bad = int((~margin_N.isfinite()).sum())
        if bad:
            raise NotFiniteError(f"{bad} of {len(margin_N)} held-out margins of the policy are not finite")
        estimates = {"eval_policy_accuracy": mean(right(margin_N)), "eval_policy_margin": mean(margin_N)}
        return with_errors(estimates) | {
            "eval_chosen_logps": chosen_N.mean().item(),
            "eval_rejected_logps": rejected_N.mean().item(),
        }

    def _scores(self, batch: Batch, chosen_B: Tensor, rejected_B: Tensor) -> tuple[Tensor, Tensor]:
        """The two numbers of each pair whose difference is its margin, from its log-probs, each of shape (B,)."""
        return per_token(chosen_B, batch["chosen_lengths"]), per_token(rejected_B, batch["rejected_lengths"])

    def _measured(self, model: nn.Module) -> Tensor:
        """What is known of each pair, shape (5, N), float64.

        Log-probs of the chosen and the rejected completion, their scores, and the tokens that the chosen one is longer.
        """

        def look(batch: Batch) -> Tensor:
            chosen_B, rejected_B = pair_log_probs(model, batch)
            longer_B = batch["chosen_lengths"] - batch["rejected_lengths"]
            of_pairs = chosen_B, rejected_B, *self._scores(batch, chosen_B, rejected_B), longer_B
            return torch.stack([each_B.double() for each_B in of_pairs])

        with torch.no_grad(), computing(model, self._training):
            parts = in_step(model, look, self._batches, spare=lambda: pair_log_probs(model, self._spare))
        return torch.cat(gathered(torch.cat(parts, dim=1) if parts else None), dim=1)


class HeldOut(HeldOutOfPolicy):
    """The held-out pairs with their reference values: margins are log-ratios, chosen minus rejected.

    Args:
        rows: Token ids of every held-out pair.
        reference: Completes the rows.
        model: The base model without an adapter.
        form: How pairs go through it.
        training: Truncation, precision and batch size.
    """

    def __init__(
        self,
        rows: list[Row],
        reference: ReferenceLogProbs,
        model: PreTrainedModel,
        form: PairForm,
        training: TrainingConfig,
    ) -> None:
        reference.fill(rows)
        super().__init__(rows, model, form, training)
        rank, world = rank_and_world()
        self._kl_batches, (self._kl_spare, *_) = (
            completion_batches(own, model, training, packed=form.packed)
            for own in (rows[:KL_ROWS][rank::world], rows[:1])
        )
        with torch.no_grad():
            self._reference_logits = in_step(
                model,
                lambda batch: _kept(self._logits(model, batch), training),
                self._kl_batches,
                spare=lambda: self._logits(model, self._kl_spare),
            )

    def untrained(self) -> dict[str, float]:
        """The numbers of the reference itself, known without a forward pass: every margin is 0, every pair a tie."""
        return dict(UNTRAINED)

    def evaluate(self, model: nn.Module, *, beta_kl: float, geometry: Geometry | None) -> dict[str, float]:
        """Held-out numbers of the policy; accuracy counts a tie one half, margins and KL are in nats.

        Raises:
            NotFiniteError: A margin or the KL is not finite.
        """
        model.eval()
        chosen_N, rejected_N, ratio_chosen_N, ratio_rejected_N, longer_N = self._measured(model)
        margin_N = ratio_chosen_N - ratio_rejected_N
        self.margins = margin_N.tolist()
        kl = self._kl(model)
        bad = int((~margin_N.isfinite()).sum())
        if bad or not math.isfinite(kl):
            raise NotFiniteError(f"{bad} of {len(margin_N)} held-out margins are not finite, the KL is {kl:.4g}")
        quantiles = torch.quantile(margin_N, margin_N.new_tensor([*MARGIN_QUANTILES.values()])).tolist()
        estimates = {
            "eval_accuracy": mean(right(margin_N)),
            "eval_accuracy_lc": length_controlled_accuracy(margin_N, longer_N),
            "eval_auc": auc(ratio_chosen_N, ratio_rejected_N),
            "eval_margin": mean(margin_N),
            "eval_separation": separation(margin_N),
        }
        return with_errors(estimates) | {
            "eval_chosen_logps": chosen_N.mean().item(),
            "eval_rejected_logps": rejected_N.mean().item(),
            **dict(zip(MARGIN_QUANTILES, quantiles, strict=True)),
            "eval_kl": kl,
            "eval_trap_fraction": trap_fraction(margin_N, beta_kl=beta_kl, geometry=geometry),
        }

    def _scores(self, batch: Batch, chosen_B: Tensor, rejected_B: Tensor) -> tuple[Tensor, Tensor]:
        return chosen_B - batch["ref_chosen_logps"], rejected_B - batch["ref_rejected_logps"]

    def _kl(self, model: nn.Module) -> float:
        """Exact KL(policy || reference) over the vocabulary, summed over a completion, mean over the rows, in nats."""

        def divergence(compared: tuple[CompletionBatch, Tensor]) -> Tensor:
            batch, reference_CV = compared
            policy_CV = self._logits(model, batch)
            tiles = zip(policy_CV.split(KL_TILE), reference_CV.split(KL_TILE), strict=True)
            kl = torch.stack([_kl_div(*tile) for tile in tiles]).sum()
            return torch.stack([kl, kl.new_tensor(batch.rows)])

        mine = [*zip(self._kl_batches, self._reference_logits, strict=True)]
        with torch.no_grad():
            sums = in_step(model, divergence, mine, spare=lambda: self._logits(model, self._kl_spare))
        total, rows = torch.stack(gathered(torch.stack(sums).sum(dim=0) if sums else None)).sum(dim=0).tolist()
        return float(total / rows)

    def _logits(self, model: nn.Module, batch: CompletionBatch) -> Tensor:
        """Logits (C, V) that predict the completions' tokens, in float32.

        In bfloat16 the smallest change of a weight changes the rounding after it: an adapter of 1e-6 has a KL of
        0.05 nats a completion then (SmolLM2-135M, LoRA), as much as one of 1e-3.
        """
        with in_float32(model):
            return model(**batch.inputs, logits_to_keep=batch.predicting_C).logits[0]


def _kept(logits_CV: Tensor, training: TrainingConfig) -> Tensor:
    """Logits of the reference as they are kept on the host: C x V numbers a row are the largest thing that stays.

    Where trials compute in bfloat16, half of the bytes do: below the largest logit of a token, float16 is finest where
    the probability is.
    """
    if not training.in_bfloat16:
        return logits_CV.cpu()
    least = torch.finfo(torch.float16).min
    return (logits_CV - logits_CV.amax(dim=-1, keepdim=True)).clamp(min=least).half().cpu()


def _kl_div(policy_CV: Tensor, reference_CV: Tensor) -> Tensor:
    """KL(policy || reference) out of logits, summed over tokens, shape (), float64, in nats."""
    policy, reference = (
        torch.log_softmax(logits.to(policy_CV.device).float(), dim=-1) for logits in (policy_CV, reference_CV)
    )
    return torch.nn.functional.kl_div(reference, policy, log_target=True, reduction="sum").double()


def trap_fraction(margin_N: Tensor, *, beta_kl: float, geometry: Geometry | None) -> float:
    """Share of pairs below the barrier, from where descent leads into the trap; 0 for a loss without one."""
    if geometry is None or geometry.barrier is None:
        return 0.0
    return float((margin_N < geometry.barrier.margin(beta_kl)).double().mean())


def gathered(mine: Tensor | None) -> list[Tensor]:
    """What every rank holds, in rank order; a rank without rows gives None."""
    if not dist.is_initialized():
        return [] if mine is None else [mine]
    parts: list[Tensor | None] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, None if mine is None else mine.cpu())
    return [part for part in parts if part is not None]
