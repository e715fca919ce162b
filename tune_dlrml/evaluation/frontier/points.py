"""Where a policy lies between reward and divergence: both of completions that it samples itself, with intervals.

The reward-KL frontier of arXiv 2305.18290, figure 2. Other than in the scripts of arXiv 2406.08414 the divergence is
KL(policy || reference) of whole completions, not the mean KL(reference || policy) of a token, prompts included.

Shape legend: N = prompts, B = completions in a batch, T = tokens of a padded row, C = completion tokens,
V = vocabulary.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from scipy.stats import bootstrap
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from tune_dlrml.errors import InputError, NotFiniteError
from tune_dlrml.evaluation.engines.registry import Live, engine_in_process
from tune_dlrml.evaluation.frontier.rewards import Reward
from tune_dlrml.evaluation.records import Chat, Sampled, joined

CONFIDENCE = 0.95
RESAMPLES = 9999
LEAST_PROMPTS = 2
"""An interval is over prompts."""


@dataclass(frozen=True)
class Compared:
    """A policy and what its divergence is measured from.

    Attributes:
        policy: A causal language model, with its adapter on if it has one.
        tokenizer: The model's own.
        reference: A second model over the same tokens; None is the policy with its adapter off.
    """

    policy: Any
    tokenizer: PreTrainedTokenizerBase
    reference: Any = None

    def __post_init__(self) -> None:
        if self.reference is None and not hasattr(self.policy, "disable_adapter"):
            raise InputError(
                f"a policy without an adapter needs a reference model, but {type(self.policy).__name__} came alone; "
                "load the model that its training began with."
            )


@dataclass(frozen=True)
class Sampling:
    """How completions are drawn.

    Attributes:
        samples: Completions of each prompt.
        temperature: Of the policy and of the reference; at another one than 1 it is the two tempered distributions
            that are compared, so that an untrained policy lies at KL 0.
        max_new_tokens: A completion is cut after so many tokens, and its divergence with it.
        batch_size: Completions at once; 2 * B * C * V logits are in memory while they are compared.
        seed: Of the completions and of the bootstrap.
    """

    samples: int = 4
    temperature: float = 1.0
    max_new_tokens: int = 48
    seed: int = 0
    batch_size: int = 16

    def __post_init__(self) -> None:
        for name in ("samples", "max_new_tokens", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"`{name} >= 1` must hold, but got {getattr(self, name)}.")
        if not 0 < self.temperature < math.inf:
            raise InputError(
                f"`0 < temperature < inf` must hold, but got {self.temperature}: greedy completions are no sample "
                "of the policy, so nothing can be said of its expected reward or divergence. Take 1."
            )


@dataclass(frozen=True)
class Estimate:
    """A mean with its standard error and its 95 % interval, all over prompts."""

    mean: float
    se: float
    interval: tuple[float, float]

    @classmethod
    def of(cls, values_N: Sequence[float], *, seed: int) -> Self:
        """The mean of one independent value per prompt; the interval is the bias-corrected bootstrap's (BCa).

        Raises:
            InputError: There are fewer than two values.
        """
        values = np.asarray(values_N, dtype=float)
        _check_prompts(len(values))
        mean = float(values.mean())
        if (values == values[0]).all():  # BCa divides by the spread
            return cls(mean, 0.0, (mean, mean))
        found = bootstrap(
            (values,),
            np.mean,
            n_resamples=RESAMPLES,
            batch=500,  # bounds the memory
            confidence_level=CONFIDENCE,
            rng=np.random.default_rng(seed),
        )
        low, high = found.confidence_interval
        return cls(mean, float(values.std(ddof=1)) / math.sqrt(len(values)), (float(low), float(high)))


@dataclass(frozen=True)
class Completion:
    """One sampled completion: its text, reward, KL to the reference in nats, and length in tokens."""

    prompt: str
    text: str
    reward: float
    kl: float
    tokens: int


class Position(NamedTuple):
    """What counts when points are compared: reward is to be high, KL (nats) low."""

    reward: float
    kl: float


@dataclass(frozen=True)
class FrontierPoint:
    """Reward and divergence of one policy.

    Attributes:
        reward: Expected reward of a completion.
        kl: KL(policy || reference) of a completion, in nats.
        completions: All that it rests on, sample by sample in the order of the prompts.
    """

    reward: Estimate
    kl: Estimate
    completions: tuple[Completion, ...] = ()

    @property
    def position(self) -> Position:
        """Its two means."""
        return Position(self.reward.mean, self.kl.mean)

    def as_json(self) -> dict[str, Any]:
        """The numbers alone."""
        return {"reward": asdict(self.reward), "kl": asdict(self.kl)}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """The point that `as_json` wrote, without its completions; other keys are passed over."""
        reward, kl = (
            Estimate(values["mean"], values["se"], (values["interval"][0], values["interval"][1]))
            for values in (document["reward"], document["kl"])
        )
        return cls(reward, kl)


def frontier_point(
    compared: Compared, prompts: Sequence[str | Chat], reward: Reward, sampling: Sampling
) -> FrontierPoint:
    """Sample completions of the policy and say what they are worth and how far they are from the reference.

    Args:
        compared: Policy and reference; both are left as they were.
        prompts: At least two, as in a data set of pairs: a chat is answered, a text is continued as it stands.
        reward: Gets a chat's messages joined by empty lines as its prompt.
        sampling: How completions are drawn.

    Raises:
        InputError: The reward is at fault, or there are too few prompts.
        NotFiniteError: A KL is not finite.
    """
    _check_prompts(len(prompts))
    model = Live("policy", compared.policy, compared.tokenizer)
    engine = engine_in_process(model, max_new_tokens=sampling.max_new_tokens, batch_size=sampling.batch_size)
    drawn = engine.sample([*prompts] * sampling.samples, temperature=sampling.temperature, seed=sampling.seed)
    kls = completion_kl(compared, drawn, temperature=sampling.temperature, batch_size=sampling.batch_size)
    texts = [joined(prompt) for prompt in prompts] * sampling.samples
    rewards = reward(texts, [sampled.text for sampled in drawn])
    by_round = (sampling.samples, len(prompts))
    return FrontierPoint(
        reward=Estimate.of(np.reshape(rewards, by_round).mean(axis=0), seed=sampling.seed),
        kl=Estimate.of(np.reshape(kls, by_round).mean(axis=0), seed=sampling.seed),
        completions=tuple(
            Completion(prompt, sampled.text, value, kl, len(sampled.completion_ids))
            for prompt, sampled, value, kl in zip(texts, drawn, rewards, kls, strict=True)
        ),
    )


def completion_kl(
    compared: Compared, sampled: Sequence[Sampled], *, temperature: float = 1.0, batch_size: int = 16
) -> list[float]:
    """An unbiased estimate of KL(policy || reference) from each completion that the policy sampled, in nats.

    sum_t KL(policy(. | y_<t) || reference(. | y_<t)), each term exact over the vocabulary, over the tokens y_t of the
    completion up to and with the one that ends it. It is the Rao-Blackwellised form of the log-ratio of the completion:
    the same expectation, no larger variance, never negative (arXiv 2504.10637).

    Raises:
        NotFiniteError: One of them is not finite.
    """
    values = [0.0] * len(sampled)
    order = sorted(range(len(sampled)), key=lambda index: len(sampled[index].completion_ids))
    with torch.no_grad(), ExitStack() as stack:
        for model in filter(None, (compared.policy, compared.reference)):
            stack.enter_context(_evaluating(model))
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            rows = [sampled[index] for index in batch]
            policy_BCV = _logits(compared.policy, rows)
            with _reference(compared) as reference:
                reference_BCV = _logits(reference, rows).to(policy_BCV.device)
            for row, index in enumerate(batch):
                tokens = len(sampled[index].completion_ids)
                kl_C = token_kl(policy_BCV[row, :tokens], reference_BCV[row, :tokens], temperature)
                values[index] = float(kl_C.double().sum())
    bad = [value for value in values if not math.isfinite(value)]
    if bad:
        raise NotFiniteError(
            f"the KL of a completion must be finite, but that of {len(bad)} of {len(values)} is not, such as {bad[0]}: "
            "the logits of policy or reference are NaN or infinite, or the reference rules out what the policy says. "
            "Examine a model that has not diverged, against the model that its training began with."
        )
    return values


def token_kl(policy_CV: Tensor, reference_CV: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(policy || reference) of the next token at C places, from logits; shape (C,), float32, in nats."""
    policy, reference = (
        torch.log_softmax(logits.float() / temperature, dim=-1) for logits in (policy_CV, reference_CV)
    )
    kl: Tensor = nn.functional.kl_div(reference, policy, log_target=True, reduction="none").sum(dim=-1)
    return kl.clamp(min=0)  # rounding alone makes it negative


def _check_prompts(count: int) -> None:
    if count < LEAST_PROMPTS:
        raise InputError(f"an interval needs at least {LEAST_PROMPTS} prompts, but got {count}; give more.")


def _logits(model: Any, rows: Sequence[Sampled]) -> Tensor:
    """Logits (B, C, V) that predict the completions' tokens; C is the longest one's, places after an end are padding.

    Prompts are padded on the left, so that all completions begin at one place and no prompt's logits are computed.
    """
    before = max(len(row.prompt_ids) for row in rows)
    longest = max(len(row.completion_ids) for row in rows)
    device = next(model.parameters()).device
    ids_BT = torch.zeros(len(rows), before + longest, dtype=torch.long)
    mask_BT = torch.zeros_like(ids_BT)
    for index, row in enumerate(rows):
        begin, end = before - len(row.prompt_ids), before + len(row.completion_ids)
        ids_BT[index, begin:end] = torch.tensor([*row.prompt_ids, *row.completion_ids])
        mask_BT[index, begin:end] = 1
    outputs = model(
        input_ids=ids_BT.to(device),
        attention_mask=mask_BT.to(device),
        position_ids=(mask_BT.cumsum(dim=1) - 1).clamp(min=0).to(device),
        use_cache=False,
        logits_to_keep=longest + 1,
    )
    logits: Tensor = outputs.logits[:, :-1]
    return logits


@contextmanager
def _reference(compared: Compared) -> Iterator[Any]:
    """The reference model; where it is the policy without its adapter, the adapter is off meanwhile."""
    if compared.reference is not None:
        yield compared.reference
        return
    trained = {parameter: parameter.requires_grad for parameter in compared.policy.parameters()}
    try:
        with compared.policy.disable_adapter():
            yield compared.policy
    finally:
        # PEFT lets an adapter that is on again be trained, whether or not it was before.
        for parameter, requires_grad in trained.items():
            parameter.requires_grad_(requires_grad)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Without dropout; every part's mode is put back afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
