"""Whether the judges of a search answer, before any trial is trained."""

from collections.abc import Iterator
from contextlib import closing

from tune_dlrml.config import EvaluationConfig, JudgeLimits
from tune_dlrml.doctor.finding import Finding
from tune_dlrml.errors import InputError, TuneDlrmlError
from tune_dlrml.evaluation.endpoint.settings import read_key
from tune_dlrml.evaluation.judges.judge import make_judge
from tune_dlrml.evaluation.judges.prompts import PAIR, SINGLE, load_judge_prompts
from tune_dlrml.evaluation.mt_bench.questionnaire import Questionnaire

PROBE_S = 20.0
"""Seconds within which an endpoint must answer."""


def examine_judges(config: EvaluationConfig | None, key: str | None) -> Iterator[Finding]:
    """Check the questions and the prompts, and send a first message to every judge.

    Args:
        config: The search's `evaluation` section; None or `when: never` needs no check.
        key: For an endpoint, if no file holds it.
    """
    if config is None or config.when == "never":
        return
    try:
        asked = Questionnaire.of(config).questions
        load_judge_prompts(config.judge_prompts, needed=SINGLE + (PAIR if config.pairwise else ()))
        yield Finding("evaluation.questions", "ok", f"{len(asked)} questions of {config.questions}")
        key = key if config.judge_key_file is None else read_key(config.judge_key_file)
    except InputError as error:
        yield Finding("evaluation", "error", str(error))
        return
    for name in config.judges:
        try:
            yield Finding("evaluation.judges", "ok", f"{name} {_answers(name, config, key)}")
        except InputError as error:
            yield Finding("evaluation.judges", "error", str(error))
        except TuneDlrmlError as error:
            yield Finding("evaluation.judges", "warning", str(error))


def _answers(name: str, config: EvaluationConfig, key: str | None) -> str:
    """The answer of a judge to a first message; see `NamedJudge.first_word`."""
    soon = config.model_copy(update={"limits": JudgeLimits(timeout_s=PROBE_S, deadline_s=PROBE_S)})
    with closing(make_judge(name, soon, key=key)) as judge:
        return judge.first_word()
