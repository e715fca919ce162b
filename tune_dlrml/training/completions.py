"""What every evaluation says of a policy's own completions, beside those of the untrained model."""

import math
from collections.abc import Sequence
from functools import partial
from statistics import fmean, pstdev

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tune_dlrml.config import TrainingConfig
from tune_dlrml.records import Completed
from tune_dlrml.training.group_spec import Completer
from tune_dlrml.training.ranks import from_all, rank_and_world
from tune_dlrml.training.reference.logps import computing
from tune_dlrml.training.sharding.shards import dealt_out, is_sharded


class HeldOutCompletions:
    """Completions of held-out prompts, which the untrained model writes once and a policy at every evaluation.

    Args:
        completer: Prompts, and how they are completed.
        model: The base model without an adapter.
        tokenizer: The model's own.
        training: Precision.
    """

    def __init__(
        self,
        completer: Completer,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        training: TrainingConfig,
    ) -> None:
        self._completer, self._tokenizer, self._training = completer, tokenizer, training
        self._untrained = self._completed(model)

    def untrained(self) -> dict[str, float]:
        """The numbers of the untrained model itself."""
        return self._numbers(self._untrained)

    def evaluate(self, policy: nn.Module) -> dict[str, float]:
        """Length of the policy's completions over that of the untrained model's and, if there is one, their reward.

        Raises:
            InputError: The reward is at fault.
            NotFiniteError: The policy's logits are not finite.
        """
        return self._numbers(self._completed(policy))

    def _numbers(self, completed: Sequence[Completed]) -> dict[str, float]:
        own, untrained = (fmean(each.tokens for each in every) for every in (completed, self._untrained))
        rewards = [each.reward for each in completed if each.reward is not None]
        return {"eval_length_ratio": own / untrained} | (
            {"eval_reward": fmean(rewards), "eval_reward_se": pstdev(rewards) / math.sqrt(len(rewards))}
            if rewards
            else {}
        )

    def _completed(self, model: nn.Module) -> list[Completed]:
        rank, world = rank_and_world()
        deal = partial(dealt_out, model) if is_sharded(model) else None
        with computing(model, self._training):
            shares = from_all(
                lambda: self._completer.complete(model, self._tokenizer, rank=rank, world=world, deal=deal)
            )
        return [*shares[0]] if deal else [each for share in shares for each in share]
