"""MT-Bench for one model, outside a search."""

import json
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tune_dlrml.benches.answers import answers_of
from tune_dlrml.benches.subject import Subject
from tune_dlrml.config import EvaluationConfig
from tune_dlrml.evaluation.judges.jury import Grading, Jury
from tune_dlrml.evaluation.mt_bench.questionnaire import Questionnaire
from tune_dlrml.evaluation.mt_bench.radar import radar
from tune_dlrml.evaluation.records import Judgement
from tune_dlrml.system.files import replace_file


def mt_bench(
    subject: Subject,
    config: EvaluationConfig,
    *,
    replies: Path,
    key: str | None,
    out: Path,
    on_judgement: Callable[[Judgement], None],
) -> dict[str, Any]:
    """Have a model answer, have the answers judged, and leave answers, judgements, table and pictures in a folder.

    Answers that are in the folder are not made again, see `answers_of`.

    Args:
        subject: Who answers.
        config: Questions, judges and their limits.
        replies: File that keeps what judges say.
        key: For their endpoint.
        out: The folder.
        on_judgement: Told of every judgement.

    Returns:
        The numbers, each with its judge; of several judges their mean, and each in `judges`.

    Raises:
        InputError: Questions, prompts or judges are at fault.
        JudgeEndedError: A judge, or the model's endpoint, ended early; replies are kept, and the same command
            resumes.
    """
    from tune_dlrml.evaluation.engines.policy import own_device

    with ExitStack() as stack:
        jury = Jury.of(config, replies, key, device=own_device())
        # Also after an interrupt: otherwise the process would wait for running requests.
        stack.callback(jury.close)
        stack.callback(jury.stop)
        questionnaire = Questionnaire.of(config)
        out.mkdir(parents=True, exist_ok=True)
        answered = answers_of(subject, questionnaire, out)
        grading = jury.grade(questionnaire.questions, answered.answers, on_judgement=on_judgement)
    lines = "".join(json.dumps(judgement.as_json()) + "\n" for judgement in grading.ratings)
    replace_file(out / "judgements.jsonl", lines)
    replace_file(out / "mt_bench.json", json.dumps(grading.table(questionnaire.questions, answered.answers)))
    for index, score in enumerate(grading.scores):
        radar({subject.name: score.categories}, judge=score.judge).savefig(out / f"mt_bench_{index}.png")
    return _document(subject.name, grading, answered.unanswered)


def _document(model: str, grading: Grading, unanswered: int) -> dict[str, Any]:
    # The last score is the only judge's, or the mean of all.
    document = grading.scores[-1].as_json()
    judges = [score.as_json() for score in grading.scores[:-1]]
    return {
        "bench": "mt-bench",
        "model": model,
        **document,
        "unanswered": unanswered,
        "calls": sum(said.calls for said in grading.ratings),
        "cached": sum(said.calls == 0 for said in grading.ratings),
    } | ({"judges": judges} if judges else {})
