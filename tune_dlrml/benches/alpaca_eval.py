"""AlpacaEval for one model: from a file of annotations, or by a comparison of its answers with a baseline's."""

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tune_dlrml.benches.answers import answers_of
from tune_dlrml.benches.subject import Subject
from tune_dlrml.config import EvaluationConfig
from tune_dlrml.errors import InputError
from tune_dlrml.evaluation.alpaca_eval.annotations import (
    Annotation,
    Output,
    paired,
    questions,
    read_annotations,
    read_outputs,
    win_rate,
    win_rate_interval,
    write_annotations,
    write_outputs,
)
from tune_dlrml.evaluation.alpaca_eval.length_controlled import length_controlled_win_rate
from tune_dlrml.evaluation.alpaca_eval.side_files import load_side_files
from tune_dlrml.evaluation.alpaca_eval.weighted_comparison import Comparer, annotated, comparisons
from tune_dlrml.evaluation.judges.judge import NamedJudge, make_judge
from tune_dlrml.evaluation.judges.replies import CachedJudge, ReplyCache, judge_all
from tune_dlrml.evaluation.judges.resigning import Resigning
from tune_dlrml.evaluation.mt_bench.questionnaire import Questionnaire
from tune_dlrml.evaluation.records import Judgement


@dataclass(frozen=True)
class Numbers:
    """What a set of annotations comes to, and what it cost.

    Attributes:
        annotations: All comparisons of the model with the baseline.
        unanswered: Instructions to which the model's endpoint gives no reply; their output is empty.
        calls: Of the judge.
        cached: Judgements that were known before.
        given_up: Why the judge was asked no more; None if it was.
    """

    annotations: Sequence[Annotation]
    unanswered: int = 0
    calls: int = 0
    cached: int = 0
    given_up: str | None = None


def from_annotations(path: Path, generator: str) -> Numbers:
    """The annotations of one model in a file of alpaca_eval's format.

    Raises:
        InputError: The file cannot be read, or does not compare this model.
    """
    rows = read_annotations(path)
    own = [row for row in rows if row.generator_2 == generator]
    if not own:
        known = sorted({row.generator_2 for row in rows})
        raise InputError(f"{path}: compares {', '.join(known) or 'no model'}, but not {generator!r}; give one as MODEL")
    return Numbers(own)


def compared(
    subject: Subject,
    baseline: Path,
    config: EvaluationConfig,
    *,
    replies: Path,
    key: str | None,
    out: Path,
    on_judgement: Callable[[Judgement], None],
) -> Numbers:
    """Have a model follow the baseline's instructions and a judge weigh its answers against the baseline's.

    Outputs and annotations are left in a folder in alpaca_eval's format; answers that are there are not made again, see
    `answers_of`.

    Raises:
        InputError: Files or judge are at fault.
        JudgeEndedError: The judge, or the model's endpoint, ended early; replies are kept, and the same command
            resumes.
    """
    # Closed also after an interrupt: running requests take minutes.
    with closing(only_judge("AlpacaEval", config, key)) as judge:
        theirs = read_outputs(baseline)[: config.limit]
        out.mkdir(parents=True, exist_ok=True)
        asked = Questionnaire(tuple(questions(theirs)), config.max_new_tokens, config.batch_size, config.seed)
        answered = answers_of(subject, asked, out)
        ours = [
            Output(instruction=their.instruction, output=given.turns[0], generator=subject.name)
            for their, given in zip(theirs, answered.answers, strict=True)
        ]
        write_outputs(out / "model_outputs.json", ours)
        asked_judge = Resigning(Comparer(judge))
        pairs = paired(theirs, ours, annotator=judge.name)
        said = judge_all(
            [comparison.inquiry for comparison in comparisons(pairs, seed=config.seed)],
            CachedJudge(asked_judge, ReplyCache(replies)),
            concurrency=config.limits.concurrency,
            on_judgement=on_judgement,
        )
    rows = annotated(pairs, said, judge=judge.name, seed=config.seed)
    write_annotations(out / "annotations.json", rows)
    calls, cached = sum(each.calls for each in said), sum(each.calls == 0 for each in said)
    return Numbers(rows, answered.unanswered, calls, cached, asked_judge.given_up)


def document(model: str, numbers: Numbers, *, side_files: str | None, seed: int) -> dict[str, Any]:
    """The win rate in percent and, with the two side files, the length-controlled one.

    Raises:
        InputError: The side files are not there, or are those of another instruction set.
    """
    rate = win_rate(numbers.annotations)
    controlled = None
    if side_files is not None and rate.missing is None:
        controlled = asdict(length_controlled_win_rate(numbers.annotations, load_side_files(side_files)))
    return {
        "bench": "alpaca-eval",
        "model": model,
        "judge": ", ".join(sorted({row.annotator for row in numbers.annotations})),
        "score": None if rate.missing is not None else rate.win_rate,
        "interval": None if rate.missing is not None else win_rate_interval(numbers.annotations, seed=seed),
        "standard_error": rate.standard_error,
        "length_controlled": controlled,
        "wins": rate.wins,
        "losses": rate.losses,
        "ties": rate.ties,
        "questions": len(numbers.annotations),
        "unscored": rate.unscored,
        "missing": (numbers.given_up or rate.missing) if rate.missing is not None else None,
        "unanswered": numbers.unanswered,
        "calls": numbers.calls,
        "cached": numbers.cached,
    }


def only_judge(bench: str, config: EvaluationConfig, key: str | None) -> NamedJudge:
    """The judge of a bench that has one.

    Raises:
        InputError: There are more.
    """
    if len(config.judges) > 1:
        raise InputError(f"{bench} has one judge, but got {', '.join(config.judges)}; run it once for each")
    from tune_dlrml.evaluation.engines.policy import own_device

    return make_judge(config.judges[0], config, key=key, device=own_device())
