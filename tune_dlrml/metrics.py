"""Every metric that a trial reports: meaning, unit, range, which way is better. Nothing else lists metrics.

Names of held-out metrics start with `eval_`, those of the training pairs with `train_`. The code that computes a metric
uses its name; all other code reads this table.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import TYPE_CHECKING, Literal

PAIRS, RATIO = "share of pairs", "no unit"
COMPLETION, TOKEN = "nats a completion", "nats a token"
Searches = Literal["all", "with a reference", "without a reference", "with completions", "with a reward"]


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One number of a trial.

    Attributes:
        name: In reports, tables and MLflow; `{...}` in it stands for any text.
        words: Its name on an axis and in a sentence.
        meaning: Its definition, in one sentence.
        unit: Of its values.
        reported: With a held-out `evaluation`, as a mean over the optimizer `steps` since the last report, once at the
            `start` of a trial, or in the `judgement` of its answers.
        least: Smallest value that it can have.
        most: Largest one.
        better: Which values are better; None where neither is.
        untrained: Value of the reference itself, which every trial has at step 0 and a diverged one in means over
            seeds; None where it has none, one that depends on the loss, or one that a worker has to find.
        objective: Whether it can be the objective of a search. It then has `better` and, as `<name>_se`, its standard
            error over the held-out pairs or prompts; `untrained`, too, where it is of searches with a reference.
        of_searches: Those that report it: all, only those with or without a reference, see
            `SearchConfig.needs_reference`, or only those with `completions` or with a reward for them.
        of_pair: Its value for one held-out pair by the margin, where the metric is the mean; None where it is not.
        heading: Heading of its column in the table of trials; empty if it has none.
        only_as_objective: Whether tables, lines and cards show it only where it decides the search.
        form: Format of a value there, and of its standard error.
        line: Format of a value and its standard error while a search runs; empty if it is not shown.
        on_card: Whether the card of an exported model has it.
    """

    name: str
    words: str
    meaning: str
    unit: str
    reported: Literal["evaluation", "steps", "start", "judgement"]
    least: float = -math.inf
    most: float = math.inf
    better: Literal["higher", "lower"] | None = None
    untrained: float | None = None
    objective: bool = False
    of_searches: Searches = "all"
    of_pair: Callable[[float], float] | None = None
    heading: str = ""
    only_as_objective: bool = False
    form: str = "{:.3g}"
    line: str = ""
    on_card: bool = False

    @property
    def error(self) -> str:
        """Name of its standard error, which is a metric of its own if it exists."""
        return f"{self.name}_se"

    @property
    def counts_pairs(self) -> bool:
        """Whether it is a share of pairs, so that where it is 0 or 1 their spread is 0 too."""
        return self.unit == PAIRS

    def shown(self, objective: str) -> bool:
        """Whether tables, lines and cards of a search by this objective have it, if those of any search do."""
        return not self.only_as_objective or self.name == objective

    def within(self, low: float, high: float) -> tuple[float, float]:
        """An interval cut to the range of the metric."""
        return max(self.least, low), min(self.most, high)


def _right(margin: float) -> float:
    return 0.5 if margin == 0 else float(margin > 0)


def _interval(metric: Metric) -> tuple[Metric, ...]:
    """A metric of judges, and the ends of its 95 % interval over the questions."""
    ends = (
        replace(
            metric,
            name=f"{metric.name}_{end}",
            words=f"{metric.words}, {end} end",
            meaning=f"The {end} end of the 95 % interval of `{metric.name}` over the questions.",
        )
        for end in ("low", "high")
    )
    return metric, *ends


MARGIN_QUANTILES = {f"eval_margin_p{percent:02d}": percent / 100 for percent in (0, 5, 25, 50, 75, 95, 100)}
"""Quantiles of the held-out margins by metric, which a report draws over the loss."""

_of_evaluation = partial(Metric, reported="evaluation")
_of_margins = partial(_of_evaluation, of_searches="with a reference")
_of_policy = partial(_of_evaluation, of_searches="without a reference")
_of_steps = partial(Metric, reported="steps")
_of_start = partial(Metric, reported="start", least=0)
_of_rating = partial(Metric, reported="judgement", unit="points of 10", least=1, most=10, better="higher")

# fmt: off
_EVALUATION = (
    _of_margins(
        name="eval_accuracy", words="held-out accuracy", unit=PAIRS, least=0, most=1, better="higher",
        meaning="Held-out pairs with a margin above 0, which the policy separates better than the reference; a tie "
        "counts one half.",
        untrained=0.5, objective=True, of_pair=_right,
        heading="accuracy", form="{:.3f} +- {:.3f}", line="accuracy {:.3f} +- {:.3f}", on_card=True),
    _of_margins(
        name="eval_accuracy_se", words="standard error of the held-out accuracy", unit=PAIRS, least=0,
        meaning="Standard error of `eval_accuracy` over the held-out pairs.", untrained=0.0),
    _of_margins(
        name="eval_accuracy_lc", words="length-controlled held-out accuracy", unit=PAIRS, least=0, most=1,
        better="higher",
        meaning="As `eval_accuracy`, with the pairs whose chosen completion is the longer one and those where it is "
        "the shorter one counting alike, so that a preference for length alone has 0.5.",
        untrained=0.5, objective=True, only_as_objective=True,
        heading="accuracy lc", form="{:.3f} +- {:.3f}", line="length-controlled accuracy {:.3f} +- {:.3f}",
        on_card=True),
    _of_margins(
        name="eval_accuracy_lc_se", words="standard error of the length-controlled held-out accuracy", unit=PAIRS,
        least=0, meaning="Standard error of `eval_accuracy_lc` over the held-out pairs.", untrained=0.0),
    _of_margins(
        name="eval_auc", words="held-out AUC", unit=PAIRS, least=0, most=1, better="higher",
        meaning="Probability that the log-ratio of policy to reference of a chosen held-out completion exceeds that of "
        "a rejected one of any pair; a tie counts one half.",
        untrained=0.5, objective=True, only_as_objective=True,
        heading="AUC", form="{:.3f} +- {:.3f}", line="AUC {:.3f} +- {:.3f}", on_card=True),
    _of_margins(
        name="eval_auc_se", words="standard error of the held-out AUC", unit=PAIRS, least=0,
        meaning="Standard error of `eval_auc` over the held-out pairs.", untrained=0.0),
    _of_margins(
        name="eval_margin", words="held-out margin", unit="nats", better="higher",
        meaning="Mean margin of the held-out pairs: log-ratio of policy to reference, chosen minus rejected.",
        untrained=0.0, objective=True, of_pair=float,
        heading="margin", form="{:+.2f}", line="margin {:+.2f} nats", on_card=True),
    _of_margins(
        name="eval_margin_se", words="standard error of the held-out margin", unit="nats", least=0,
        meaning="Standard error of `eval_margin` over the held-out pairs."),
    _of_margins(
        name="eval_separation", words="held-out separation", unit=RATIO, better="higher",
        meaning="Mean margin of the held-out pairs over the standard deviation of their margins: a factor on all "
        "margins does not change it; 0 where all margins are equal.",
        untrained=0.0, objective=True, only_as_objective=True,
        heading="separation", form="{:+.3f} +- {:.3f}", line="separation {:+.3f} +- {:.3f}", on_card=True),
    _of_margins(
        name="eval_separation_se", words="standard error of the held-out separation", unit=RATIO, least=0,
        meaning="Standard error of `eval_separation` over the held-out pairs.", untrained=0.0),
    _of_margins(
        name="eval_kl", words="KL to the reference", unit=COMPLETION, least=0, better="lower",
        meaning="KL(policy || reference), exact over the vocabulary, on the chosen completions of the first held-out "
        "pairs, summed over a completion.",
        untrained=0.0, heading="KL", form="{:.3f}", line="KL {:.3f}", on_card=True),
    *(_of_margins(
        name=name, words=f"{share:.0%} quantile of the held-out margins", unit="nats",
        meaning=f"Margin that {share:.0%} of the held-out pairs do not exceed.", untrained=0.0)
      for name, share in MARGIN_QUANTILES.items()),
    _of_margins(
        name="eval_trap_fraction", words="trapped pairs", unit=PAIRS, least=0, most=1, better="lower",
        meaning="Held-out pairs below the barrier of the loss, from where descent leads into its trap; 0 without one.",
        heading="trapped", form="{:.0%}", on_card=True),
    _of_policy(
        name="eval_policy_accuracy", words="held-out accuracy of the policy", unit=PAIRS, least=0, most=1,
        better="higher",
        meaning="Held-out pairs whose chosen completion is the more likely one under the policy, per token; a tie "
        "counts one half.",
        objective=True, of_pair=_right,
        heading="accuracy", form="{:.3f} +- {:.3f}", line="accuracy {:.3f} +- {:.3f}", on_card=True),
    _of_policy(
        name="eval_policy_accuracy_se", words="standard error of the held-out accuracy of the policy", unit=PAIRS,
        least=0, meaning="Standard error of `eval_policy_accuracy` over the held-out pairs."),
    _of_policy(
        name="eval_policy_margin", words="held-out margin of the policy", unit=TOKEN, better="higher",
        meaning="Mean over the held-out pairs of the policy's log-probability per token, chosen minus rejected.",
        objective=True, of_pair=float,
        heading="margin", form="{:+.3f}", line="margin {:+.3f} nats a token", on_card=True),
    _of_policy(
        name="eval_policy_margin_se", words="standard error of the held-out margin of the policy", unit=TOKEN,
        least=0, meaning="Standard error of `eval_policy_margin` over the held-out pairs."),
    _of_evaluation(
        name="eval_chosen_logps", words="held-out log-probability, chosen", unit=COMPLETION, most=0,
        meaning="Mean log-probability of the chosen held-out completions under the policy."),
    _of_evaluation(
        name="eval_rejected_logps", words="held-out log-probability, rejected", unit=COMPLETION, most=0,
        meaning="Mean log-probability of the rejected held-out completions under the policy."),
    _of_evaluation(
        name="eval_length_ratio", words="length of completions", unit="times the untrained model's", least=0,
        of_searches="with completions",
        meaning="Mean tokens of the policy's completions of held-out prompts over those of the untrained model's; both "
        "are cut at `completions.max_new_tokens`, and the token that ends one counts.",
        untrained=1.0, heading="length", form="{:.2f}", line="length {:.2f}", on_card=True),
    _of_evaluation(
        name="eval_reward", words="reward", unit="unit of the reward", better="higher", of_searches="with a reward",
        meaning="Mean reward of the policy's completions of held-out prompts.",
        objective=True, heading="reward", form="{:.3f} +- {:.3f}", line="reward {:.3f} +- {:.3f}", on_card=True),
    _of_evaluation(
        name="eval_reward_se", words="standard error of the reward", unit="unit of the reward", least=0,
        of_searches="with a reward", meaning="Standard error of `eval_reward` over the prompts."),
)

_STEPS = (
    _of_steps(
        name="train_loss", words="training loss", unit="nats", better="lower",
        meaning="Mean preference loss of the pairs trained on; values of different losses are not comparable.",
        on_card=True),
    _of_steps(
        name="train_sft_loss", words="scoring rule", unit="that of the rule", better="lower",
        meaning="Mean scoring rule on the chosen answers trained on, without its weight.", on_card=True),
    _of_steps(
        name="train_accuracy", words="training accuracy", unit=PAIRS, least=0, most=1, better="higher",
        of_searches="with a reference",
        meaning="Pairs trained on that had a margin above 0; a tie counts one half."),
    _of_steps(
        name="train_margin", words="training margin", unit="nats", better="higher", of_searches="with a reference",
        meaning="Mean margin of the pairs trained on."),
    _of_steps(
        name="train_policy_accuracy", words="training accuracy of the policy", unit=PAIRS, least=0, most=1,
        better="higher", of_searches="without a reference",
        meaning="Pairs trained on whose chosen completion was the more likely one, per token; a tie counts one half."),
    _of_steps(
        name="train_policy_margin", words="training margin of the policy", unit=TOKEN, better="higher",
        of_searches="without a reference",
        meaning="Mean over the pairs trained on of the policy's log-probability per token, chosen minus rejected."),
    _of_steps(
        name="train_chosen_logps", words="training log-probability, chosen", unit=COMPLETION, most=0,
        meaning="Mean log-probability of the chosen completions trained on under the policy."),
    _of_steps(
        name="train_rejected_logps", words="training log-probability, rejected", unit=COMPLETION, most=0,
        meaning="Mean log-probability of the rejected completions trained on under the policy."),
    _of_steps(
        name="grad_norm", words="gradient norm", unit=RATIO, least=0,
        meaning="Mean L2 norm of the gradient before clipping."),
    _of_steps(
        name="nonfinite_loss_fraction", words="losses that are not finite", unit=PAIRS, least=0, most=1, better="lower",
        meaning="Pairs trained on whose loss is not finite."),
    _of_steps(
        name="nonfinite_grad_fraction", words="gradient that is not finite", unit="share of its entries",
        least=0, most=1, better="lower",
        meaning="Entries of the gradient, before clipping, that are not finite.",
        heading="non-finite", form="{:.0%}"),
    _of_steps(
        name="learning_rate", words="learning rate", unit=RATIO, least=0,
        meaning="Learning rate of the newest step."),
    _of_steps(
        name="tokens", words="trained tokens", unit="tokens", least=0,
        meaning="Tokens of prompts and completions trained on since the start, padding left out."),
    _of_steps(
        name="steps_per_second", words="speed", unit="steps a second", least=0,
        meaning="Optimizer steps a second, without evaluations and checkpoints."),
    _of_steps(
        name="c", words="c = beta_mix / (tau · beta_kl)", unit=RATIO,
        meaning="Shape number of a loss with mixing; of a learnt one its present value.", heading="c"),
    _of_steps(
        name="beta_mix", words="beta_mix", unit="per nat",
        meaning="Mixing strength of a loss with mixing; of a learnt one its present value."),
    _of_steps(
        name="params.{parameter}", words="{parameter}", unit="unit of the user's loss",
        meaning="Present value of the parameter that a loss of the user's own learns."),
)

_START = (
    _of_start(name="train_pairs", words="training pairs", unit="pairs", meaning="Pairs that can be trained on."),
    _of_start(name="eval_pairs", words="held-out pairs", unit="pairs", meaning="Pairs that an evaluation measures."),
    _of_start(
        name="shared_prompt", words="shared prompt", unit="1 or 0", most=1,
        meaning="Whether a prompt is computed once for both completions."),
    _of_start(
        name="gradient_checkpointing", words="gradient checkpointing", unit="1 or 0", most=1,
        meaning="Whether activations are computed again in the backward pass."),
    _of_start(
        name="activation_gib", words="activations", unit="GiB",
        meaning="What the largest micro-batch needs for its backward pass without gradient checkpointing."),
    _of_start(
        name="reference_tokens", words="reference tokens", unit="tokens",
        meaning="Tokens computed by the reference since the group's last trial started."),
    _of_start(
        name="reference_tokens_saved", words="reference tokens saved", unit="tokens",
        meaning="Tokens of one pass over the trial's pairs whose log-probs came from the cache."),
)

_JUDGEMENT = (
    _of_rating(
        name="mt_bench/{judge}/category/{category}", words="{category} by {judge}",
        meaning="Mean rating by a judge of the answers to the questions of a category."),
    _of_rating(
        name="mt_bench/{judge}/turn_{turn}", words="turn {turn} by {judge}",
        meaning="Mean rating by a judge of the answers of a turn."),
    *_interval(_of_rating(
        name="mt_bench/{judge}/score", words="score by {judge}",
        meaning="Mean rating by a judge over all questions and turns.")),
    *_interval(_of_rating(
        name="mt_bench/{judge}/above_baseline", words="above the baseline by {judge}", least=-9, most=9,
        meaning="Mean rating of the answers by a judge minus that of the baseline's answers.")),
    *_interval(_of_rating(
        name="mt_bench/{judge}/win_rate_adjusted", words="won by {judge}", unit="share of answers", least=0, most=1,
        meaning="Answers that a judge prefers to the baseline's; a tie counts one half.")),
    Metric(
        name="mt_bench/{judge}/unscored", words="unscored by {judge}", unit="turns", reported="judgement",
        least=0, better="lower", meaning="Turns to which a judge gave no rating."),
    Metric(
        name="answering_s", words="answering", unit="seconds", reported="judgement", least=0,
        meaning="Time that the trial took to answer the questions."),
)
# fmt: on

METRICS = {metric.name: metric for metric in (*_EVALUATION, *_STEPS, *_START, *_JUDGEMENT)}
"""All metrics by their names; where a text matches two of them, the first one counts."""
UNTRAINED = {
    name: metric.untrained
    for name, metric in METRICS.items()
    if metric.untrained is not None and metric.of_searches == "with a reference"
}
"""The values of the reference itself, known without a forward pass."""

if TYPE_CHECKING:
    Objective = str
    HeldOut = str
else:
    HeldOut = Literal[tuple(name for name, metric in METRICS.items() if metric.reported == "evaluation")]
    """Names of the metrics that every evaluation reports, and that a search may bound."""
    Objective = Literal[tuple(name for name, metric in METRICS.items() if metric.objective)]
"""Names of the metrics that can be the objective of a search."""


@cache
def find_metric(name: str) -> Metric | None:
    """The metric of a name, with its words filled in where it is one of many; None if there is none."""
    if name in METRICS:
        return METRICS[name]
    for metric in METRICS.values():
        if "{" in metric.name and (found := _pattern(metric.name).fullmatch(name)):
            return replace(metric, name=name, words=metric.words.format(**found.groupdict()))
    return None


def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\\{(\w+)\\}", r"(?P<\1>.+)", re.escape(name)))
