"""AlpacaEval's weighted comparison through our judges: which of two outputs is better, and how sure the judge is.

The judge answers with one token, the name of the better output, and its log-probs make the preference: 2 minus the
share of output 1 in the probability of both names, so that an undecided judge says 1.5. Which output is shown first is
drawn for each instruction. Method: alpaca_eval 0.6.6, `weighted_alpaca_eval_gpt4_turbo`; the prompt is this project's
own.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from scipy.special import expit, logsumexp

from tune_dlrml.evaluation.alpaca_eval.annotations import Annotation
from tune_dlrml.evaluation.engines.prompting import content_seeds
from tune_dlrml.evaluation.judges.judge import NamedJudge
from tune_dlrml.evaluation.records import Inquiry, Judgement

PROMPT = "weighted-comparison-v1"
NAMES = ("A", "B")
"""Names of the outputs in the order in which they are shown: one token each for every common tokenizer."""

SYSTEM = (
    "You compare answers of AI models. You judge as a careful person would who asked the question, and you name the "
    "better answer, nothing else."
)
USER = """\
Two models were given the same instruction. Decide which answer a person would rather have: is it right, does it do \
what was asked, is it clear and useful? Neither the order of the answers nor their length says anything about that.

<instruction>
{instruction}
</instruction>

<answer name="A">
{first}
</answer>

<answer name="B">
{second}
</answer>

Which answer is better? Reply with its name alone, the one letter A or B."""


@dataclass(frozen=True)
class Comparison:
    """Two outputs as a judge is shown them.

    Attributes:
        index: Position of the annotation; also the inquiry's `question_id`.
        inquiry: For the judge.
        switched: Whether output 2 is shown first.
    """

    index: int
    inquiry: Inquiry
    switched: bool

    def preference(self, shown: float) -> float:
        """The preference between outputs 1 and 2 from that in the order in which they were shown."""
        return 3 - shown if self.switched else shown


def comparisons(annotations: Sequence[Annotation], *, seed: int) -> list[Comparison]:
    """What a judge is to be asked: the annotations without a preference.

    The order of two outputs depends on `seed` and the instruction alone, so that two models, and a resumed run,
    are shown alike.
    """
    return [
        _comparison(index, annotation, seed)
        for index, annotation in enumerate(annotations)
        if annotation.preference is None
    ]


def annotated(
    annotations: Sequence[Annotation], judgements: Sequence[Judgement], *, judge: str, seed: int
) -> list[Annotation]:
    """The annotations with the judge's preferences where there was none; those without a judgement stay without one.

    Args:
        annotations: As given to `comparisons`.
        judgements: Of the inquiries, in any order.
        judge: Name of the judge, which becomes the annotator of what it was asked.
        seed: As given to `comparisons`.
    """
    verdicts = {judgement.key: judgement.verdict for judgement in judgements if judgement.judge == judge}
    filled = list(annotations)
    for comparison in comparisons(annotations, seed=seed):
        shown = verdicts.get(comparison.inquiry.key(judge))
        preference = comparison.preference(shown) if isinstance(shown, float) else None
        filled[comparison.index] = replace(annotations[comparison.index], annotator=judge, preference=preference)
    return filled


def shown_preference(log_probs: Mapping[str, float]) -> float | None:
    """Preference in the order shown, from 1 (A) to 2 (B), of log-probs in nats of a reply's first token.

    Space around a name is passed over. None if neither name is there.
    """
    first, second = (_log_sum([p for token, p in log_probs.items() if token.strip() == name]) for name in NAMES)
    if first == second == -math.inf:
        return None
    return 1 + float(expit(second - first))


class Comparer:
    """A judge of comparisons, by the log-probs of both names right behind the inquiry.

    Args:
        judge: Who is asked.

    Attributes:
        name: The judge's.
        identity: The judge's.
    """

    def __init__(self, judge: NamedJudge) -> None:
        self.name, self.identity = judge.name, judge.identity
        self._judge = judge

    def ask(self, inquiry: Inquiry) -> Judgement:
        """The preference in the order shown, as verdict; None where the judge gives no log-prob of a name.

        Raises:
            JudgeEndedError: See `NamedJudge.next_token`.
            InputError: See `NamedJudge.next_token`.
        """
        said = self._judge.next_token(inquiry.messages, NAMES)
        preference = None if said.log_probs is None else shown_preference(said.log_probs)
        words = said.words
        if said.log_probs is not None and preference is None:
            words = f"the judge gave no log-prob of A or of B; it said {words!r}"
        return Judgement.of(self.name, inquiry, preference, words, calls=said.calls, heard=said.heard)


def _comparison(index: int, annotation: Annotation, seed: int) -> Comparison:
    switched = content_seeds([annotation.instruction], seed)[0] % 2 == 1
    shown = (annotation.output_1, annotation.output_2)
    first, second = reversed(shown) if switched else shown
    user = USER.format(instruction=annotation.instruction, first=first, second=second)
    messages = ({"role": "system", "content": SYSTEM}, {"role": "user", "content": user})
    return Comparison(index, Inquiry("pair", PROMPT, messages, question_id=index, turn=1), switched)


def _log_sum(log_probs: Sequence[float]) -> float:
    return float(logsumexp(log_probs)) if log_probs else -math.inf
