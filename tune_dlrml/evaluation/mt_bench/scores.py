"""MT-Bench: inquiries to judges about answers, and scores from their judgements.

Zheng et al., 2023, "Judging LLM-as-a-Judge with MT-Bench and Chatbot Arena" (arXiv 2306.05685), computed as FastChat's
`llm_judge` does. Every number names its judge: one judge's ratings are not comparable with another's.

A number rests on at least 90 % of the judgements that it is about, or it is missing (None): the turns that a judge
gives no verdict on are rarely a fair sample. Intervals are 95 % percentile bootstrap intervals over questions, since
the turns of one question are not independent; None where fewer than two questions have a judgement. Of simulated
ratings, such intervals held the true mean in 94 % of cases with 80 questions and in 90 % with 16.
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any, TypeVar

import numpy as np

from tune_dlrml.errors import InputError
from tune_dlrml.evaluation.judges.prompts import JudgePrompts, PromptName
from tune_dlrml.evaluation.mt_bench.questions import is_guided
from tune_dlrml.evaluation.records import Answers, Inquiry, Judgement, Question

LEAST_SCORED = Fraction(9, 10)
"""Share of the judgements that a number must rest on."""
CONFIDENCE = 0.95
RESAMPLES = 9999
_RESAMPLES_AT_ONCE = 250  # 20 MB at a time for 10,000 questions

Turn = tuple[int | str, int]
"""Id of a question, and the turn counted from 1."""
Interval = tuple[float, float]
Group = TypeVar("Group", int, str)


@dataclass(frozen=True)
class Score:
    """Mean rating from 1 to 10, or the mean difference of two models' ratings, by one judge.

    Attributes:
        judge: Name of the judge, or of all judges whose ratings were averaged.
        score: Mean over all turns that have a rating; None where it is missing.
        interval: Of the score.
        turns: Mean of each turn.
        categories: Mean of each category over both turns, in the order of the questions.
        questions: How many were to be judged.
        unscored: Turns without a rating.
        missing: Why there is no score; None where there is one.
    """

    judge: str
    score: float | None
    interval: Interval | None
    turns: Mapping[int, float | None]
    categories: Mapping[str, float | None]
    questions: int
    unscored: int
    missing: str | None

    def as_json(self) -> dict[str, Any]:
        """For files and `--json`."""
        return asdict(self)


@dataclass(frozen=True)
class Match:
    """One turn of two models, shown to the judge in both orders.

    Attributes:
        ours_first: Assistant A is the model that is examined, B the baseline.
        baseline_first: The other way round.
    """

    ours_first: Inquiry
    baseline_first: Inquiry

    @property
    def inquiries(self) -> tuple[Inquiry, Inquiry]:
        """What the judge is asked."""
        return self.ours_first, self.baseline_first


@dataclass(frozen=True)
class PairScore:
    """Matches won, tied and lost against a baseline, by one judge.

    Attributes:
        judge: Name of the judge.
        wins: Matches that were won in both orders. All others that have both verdicts are ties, or losses in both.
        ties: The verdicts differ, or are both a tie.
        losses: Matches that were lost in both orders.
        unscored: Matches that lack a verdict.
        win_rate: wins / (wins + ties + losses); None where it is missing.
        win_rate_adjusted: The same with a tie as half a win.
        interval: Of the adjusted win rate.
        missing: Why there is no win rate; None where there is one.
    """

    judge: str
    wins: int
    ties: int
    losses: int
    unscored: int
    win_rate: float | None
    win_rate_adjusted: float | None
    interval: Interval | None
    missing: str | None

    def as_json(self) -> dict[str, Any]:
        """For files and `--json`."""
        return asdict(self)


def inquiries(questions: Sequence[Question], answers: Iterable[Answers], prompts: JudgePrompts) -> list[Inquiry]:
    """What a judge is asked to rate: every turn of every question, turn 2 with the conversation before it.

    Raises:
        InputError: A question has no answers, or not to all its turns, or is answered twice.
    """
    ours = _by_question(questions, answers)
    return [
        _inquiry(prompts, PromptName("rating", is_guided(question, turn), turn), question, ours[question.id])
        for question in questions
        for turn in _turns(question)
    ]


def pair_inquiries(
    questions: Sequence[Question], ours: Iterable[Answers], baselines: Iterable[Answers], prompts: JudgePrompts
) -> list[Match]:
    """What a judge is asked to compare: every turn of every question, in both orders.

    Raises:
        InputError: As for `inquiries`, for either model.
    """
    our, baseline = _by_question(questions, ours), _by_question(questions, baselines)
    matches = []
    for question in questions:
        for turn in _turns(question):
            name = PromptName("pair", is_guided(question, turn), turn)
            mine, other = our[question.id], baseline[question.id]
            matches.append(
                Match(_inquiry(prompts, name, question, mine, other), _inquiry(prompts, name, question, other, mine))
            )
    return matches


def score(judgements: Iterable[Judgement], questions: Sequence[Question], judge: str, *, seed: int) -> Score:
    """Score of one model by one judge's ratings, as FastChat's `show_result` computes it.

    Args:
        judgements: Those of other judges and of pairs are passed over; of two ratings of a turn the later counts.
        questions: All that were to be judged.
        judge: Name of the judge.
        seed: Of the bootstrap.
    """
    return _score(_ratings(judgements, judge), questions, judge, seed)


def mean_score(
    judgements: Collection[Judgement], questions: Sequence[Question], judges: Sequence[str], *, seed: int
) -> Score:
    """The same for the mean of several judges' ratings, on the turns that all of them rated, named by all of them."""
    each = [_ratings(judgements, judge) for judge in judges]
    shared = set.intersection(*(set(ratings) for ratings in each))
    means = {turn: math.fsum(ratings[turn] for ratings in each) / len(each) for turn in shared}
    return _score(means, questions, f"mean of {', '.join(judges)}", seed)


def difference(
    judgements: Iterable[Judgement],
    baseline: Iterable[Judgement],
    questions: Sequence[Question],
    judge: str,
    *,
    seed: int,
) -> Score:
    """How much higher a judge rates a model than a baseline, paired by turn, on the turns of both that have a rating.

    The interval is that of the difference: it is narrower than those of the two scores suggest.
    """
    ours, theirs = _ratings(judgements, judge), _ratings(baseline, judge)
    return _score({turn: ours[turn] - theirs[turn] for turn in ours if turn in theirs}, questions, judge, seed)


def pair_score(matches: Sequence[Match], judgements: Iterable[Judgement], judge: str, *, seed: int) -> PairScore:
    """Win rate by one judge's verdicts on the matches, as FastChat's `show_result` computes it.

    A match counts as won or lost only if both orders agree, so that a judge that prefers a position decides nothing.
    """
    verdicts = {said.key: said.verdict for said in judgements if said.judge == judge and said.verdict is not None}
    results: dict[Turn, float] = {}
    for match in matches:
        first, second = (verdicts.get(inquiry.key(judge)) for inquiry in match.inquiries)
        if first is not None and second is not None:
            results[_turn(match)] = {("A", "B"): 1.0, ("B", "A"): 0.0}.get((str(first), str(second)), 0.5)
    asked = [_turn(match) for match in matches]
    outcomes = list(results.values())
    wins, ties, losses = (outcomes.count(outcome) for outcome in (1.0, 0.5, 0.0))
    adjusted = _mean(results, asked)
    return PairScore(
        judge=judge,
        wins=wins,
        ties=ties,
        losses=losses,
        unscored=len(asked) - len(results),
        win_rate=None if adjusted is None else wins / len(results),
        win_rate_adjusted=adjusted,
        interval=None if adjusted is None else _interval(results, seed),
        missing=_missing(results, asked, judge),
    )


def _by_question(questions: Sequence[Question], answers: Iterable[Answers]) -> dict[int | str, Answers]:
    given: dict[int | str, Answers] = {}
    for one in answers:
        if one.question_id in given:
            raise InputError(f"Every question must be answered once, but question {one.question_id!r} is twice.")
        given[one.question_id] = one
    for question in questions:
        count = len(given[question.id].turns) if question.id in given else 0
        if count < len(question.turns):
            raise InputError(
                f"Every turn must be answered, but question {question.id!r} has {len(question.turns)} turns and "
                f"{count} answers. Have the model answer these questions."
            )
    return given


def _inquiry(prompts: JudgePrompts, name: PromptName, question: Question, *answers: Answers) -> Inquiry:
    prompt = prompts[name]
    quotable = "\n\n".join(prompt.texts(question, *answers).values())
    return Inquiry(name.kind, str(name), prompt.messages(question, *answers), question.id, name.turn, quotable)


def _turns(question: Question) -> range:
    return range(1, len(question.turns) + 1)


def _turn(match: Match) -> Turn:
    return match.ours_first.question_id, match.ours_first.turn


def _ratings(judgements: Iterable[Judgement], judge: str) -> dict[Turn, float]:
    return {
        (said.question_id, said.turn): said.verdict
        for said in judgements
        if said.judge == judge and isinstance(said.verdict, int | float)
    }


def _score(ratings: Mapping[Turn, float], questions: Sequence[Question], judge: str, seed: int) -> Score:
    asked = {(question.id, turn): question.category for question in questions for turn in _turns(question)}
    ratings = {turn: ratings[turn] for turn in asked if turn in ratings}

    overall = _mean(ratings, asked)
    return Score(
        judge=judge,
        score=overall,
        interval=None if overall is None else _interval(ratings, seed),
        turns=_means(ratings, {turn: turn[1] for turn in sorted(asked, key=lambda turn: turn[1])}),
        categories=_means(ratings, asked),
        questions=len(questions),
        unscored=len(asked) - len(ratings),
        missing=_missing(ratings, asked, judge),
    )


def _mean(values: Mapping[Turn, float], asked: Collection[Turn]) -> float | None:
    """Mean over the turns asked that have a value; None where too few do."""
    found = [values[turn] for turn in asked if turn in values]
    if not found or len(found) < LEAST_SCORED * len(asked):
        return None
    return math.fsum(found) / len(found)


def _means(values: Mapping[Turn, float], group_of: Mapping[Turn, Group]) -> dict[Group, float | None]:
    groups: dict[Group, list[Turn]] = {}
    for turn, group in group_of.items():
        groups.setdefault(group, []).append(turn)
    return {group: _mean(values, turns) for group, turns in groups.items()}


def _missing(values: Mapping[Turn, float], asked: Collection[Turn], judge: str) -> str | None:
    if _mean(values, asked) is not None:
        return None
    return (
        f"A score must rest on at least {float(LEAST_SCORED):.0%} of the judgements, but {judge} gave a verdict on "
        f"{len(values)} of {len(asked)} turns. Run the same command again to ask for the others, or ask another judge."
    )


def _interval(values: Mapping[Turn, float], seed: int) -> Interval | None:
    """Bootstrap interval of the mean over turns, resampling questions with all their turns."""
    from scipy.stats import bootstrap  # half a second, where nothing is judged

    by_question: dict[int | str, list[float]] = {}
    for (question, _), value in values.items():
        by_question.setdefault(question, []).append(value)
    if len(by_question) < 2:
        return None
    sums, counts = (np.array([measure(turns) for turns in by_question.values()], float) for measure in (math.fsum, len))
    drawn = bootstrap(
        (sums, counts),
        lambda sums, counts, axis: sums.sum(axis) / counts.sum(axis),
        paired=True,
        n_resamples=RESAMPLES,
        batch=_RESAMPLES_AT_ONCE,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(drawn.low), float(drawn.high)
