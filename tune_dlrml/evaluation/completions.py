"""Completions of held-out prompts by a policy that is being trained: how long each is, and what it is worth."""

from dataclasses import dataclass
from functools import cache
from typing import Any, Self

from tune_dlrml.config import SearchConfig
from tune_dlrml.data import Section
from tune_dlrml.errors import InputError
from tune_dlrml.evaluation.engines.registry import Deal, Live, engine_in_process, one_after_another
from tune_dlrml.evaluation.frontier.rewards import Reward, load_reward
from tune_dlrml.evaluation.records import Chat, joined
from tune_dlrml.records import Completed

SEED = 0
"""Of what is drawn: the same for every trial and step, so that policies that write alike write the same."""


@dataclass(frozen=True)
class Completer:
    """Prompts, how they are completed and what completions are worth. Light enough to travel to every worker.

    Attributes:
        prompts: Distinct ones.
        max_new_tokens: Limit of one completion.
        temperature: Of the tokens drawn.
        batch_size: Prompts completed at once.
        reward: Reference of the reward; None rewards nothing.
        content: Fingerprint of the file or the weights behind the reward.
    """

    prompts: tuple[str | Chat, ...]
    max_new_tokens: int
    temperature: float
    batch_size: int
    reward: str | None = None
    content: str = ""

    @classmethod
    def of(cls, config: SearchConfig, held_out: Section) -> Self | None:
        """The completer of a search; None if it has no `completions`.

        Args:
            config: The search.
            held_out: Its held-out pairs.

        Raises:
            InputError: The reward cannot be loaded, or there are fewer distinct prompts than are asked for.
        """
        section = config.completions
        if section is None:
            return None
        distinct = list({str(pair["prompt"]): pair["prompt"] for pair in held_out.pairs}.values())
        if len(distinct) < section.prompts:
            raise InputError(
                f"completions.prompts: {held_out.key} must have as many distinct prompts, but it has {len(distinct)} "
                f"and prompts is {section.prompts}; lower it"
            )
        try:
            content = "" if section.reward is None else load_reward(section.reward).content
        except InputError as error:
            raise InputError(f"completions.reward: {error}") from None
        return cls(
            prompts=tuple(distinct[: section.prompts]),
            max_new_tokens=section.max_new_tokens,
            temperature=section.temperature,
            batch_size=config.training.per_device_eval_batch_size,
            reward=section.reward,
            content=content,
        )

    def complete(
        self, policy: Any, tokenizer: Any, *, rank: int, world: int, deal: Deal | None = None
    ) -> list[Completed]:
        """This rank's share of the completions; all of them where the ranks `deal` the batches out.

        Raises:
            InputError: The reward fails, or is not the one that the search was started with.
            NotFiniteError: The policy's logits are not finite.
        """
        prompts = self.prompts if deal else self.prompts[rank::world]
        model = Live("policy", policy, tokenizer, deal=deal or one_after_another)
        engine = engine_in_process(model, max_new_tokens=self.max_new_tokens, batch_size=self.batch_size)
        drawn = engine.sample(prompts, temperature=self.temperature, seed=SEED)
        lengths = [len(sampled.completion_ids) for sampled in drawn]
        if self.reward is None:
            return [Completed(length, None) for length in lengths]
        rewards = _loaded(self.reward, self.content)(list(map(joined, prompts)), [sampled.text for sampled in drawn])
        return [Completed(*each) for each in zip(lengths, rewards, strict=True)]


@cache
def _loaded(reference: str, content: str) -> Reward:
    """The reward, once a process.

    Raises:
        InputError: It cannot be loaded, or has changed since.
    """
    reward = load_reward(reference)
    if reward.content != content:
        raise InputError(
            f"reward {reference}: must stay as it was when the search was started, but is {reward.content}, and was "
            f"{content}; put it back, or choose another --name"
        )
    return reward
