"""What a search asks its trained models, and who judges the answers."""

from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, PlainValidator, model_validator

from tune_dlrml.config.domains import Frozen, law
from tune_dlrml.evaluation.judges.registry import JUDGES, is_remote, judge_kind


def _judge(value: Any) -> Any:
    if judge_kind(value) is None:
        raise law(f"a judge is {' or '.join(kind.form for kind in JUDGES.values())}, but got {value!r}")
    return value


def _is_plain(url: str) -> bool:
    """Whether an address holds nothing that may be a secret."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    secretive = "@" in parts.netloc or parts.query or parts.fragment
    return parts.scheme in ("http", "https") and bool(parts.hostname) and not secretive


JudgeName = Annotated[str, PlainValidator(_judge)]
Text = Annotated[str, Field(min_length=1)]
Natural = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0)]


class JudgeLimits(Frozen):
    """What one run of a command may spend on each judge behind an endpoint.

    `concurrency` requests are under way at once, each for at most `timeout_s` seconds; none is sent later than
    `deadline_s` seconds after the first. `max_calls` counts every request that is sent, repeated ones too, `max_tokens`
    the tokens of prompts and replies as the endpoint counts them.
    """

    concurrency: Natural = 4
    timeout_s: Seconds = 120
    deadline_s: Seconds = 604_800
    max_calls: Natural = 20_000
    max_tokens: Natural = 50_000_000


class EvaluationConfig(Frozen):
    """MT-Bench in the loop: which trials answer its questions, how, and who judges.

    `when: final_rung` examines every trial that uses up its budget, while others train; `best` the `best` ones by the
    search's metric at its end; `never` none. `questions`, `references` and `judge_prompts` are `builtin:mt-bench` or
    files in FastChat's formats; `limit` takes the first questions only. Answers have at most `max_new_tokens` tokens
    and are drawn from `seed`. `pairwise` has each trial's answers compared with those of the DPO baseline as well.

    A judge behind an endpoint replies in at most `judge_max_tokens` tokens, its thoughts included. The key of an
    endpoint is in `judge_key_file` and is read by the driver alone.
    """

    when: Literal["never", "final_rung", "best"] = "final_rung"
    best: Natural = 3
    questions: Text = "builtin:mt-bench"
    references: Text | None = None
    judge_prompts: Text = "builtin:mt-bench"
    limit: Natural | None = None
    max_new_tokens: Natural = 1024
    batch_size: Natural = 8
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    pairwise: bool = False
    judges: Annotated[list[JudgeName], Field(min_length=1)]
    judge_url: Text | None = None
    judge_key_file: Text | None = None
    judge_max_tokens: Natural = 2048
    limits: JudgeLimits = JudgeLimits()

    @model_validator(mode="after")
    def _laws(self) -> Self:
        if len(set(self.judges)) < len(self.judges):
            raise law(f"every judge judges once, but got {self.judges}", key="judges")
        if self.judge_url is not None and not _is_plain(self.judge_url):
            raise law(
                "http(s)://host[:port][/path] and nothing else is needed, since it is written down in many places; a "
                "key comes from judge_key_file or OPENAI_API_KEY",
                key="judge_url",
            )
        if self.judge_url is not None and not any(map(is_remote, self.judges)):
            forms = " or ".join(kind.form for kind in JUDGES.values() if kind.remote)
            raise law(f"only a judge {forms} has a judge_url, and there is none in judges", key="judge_url")
        return self
