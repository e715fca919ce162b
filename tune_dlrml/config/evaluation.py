"""What the policies of a search write: completions of held-out prompts, and answers for judges."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, PlainValidator, model_validator

from tune_dlrml.config.numbers import NotNegative
from tune_dlrml.domains import Frozen, law
from tune_dlrml.evaluation.judges.registry import JUDGES, is_remote, judge_kind
from tune_dlrml.system.urls import is_plain


def _judge(value: Any) -> Any:
    if judge_kind(value) is None:
        raise law(f"a judge is {' or '.join(kind.form for kind in JUDGES.values())}, but got {value!r}")
    return value


JudgeName = Annotated[
    str, PlainValidator(_judge, json_schema_input_type=Annotated[str, Field(pattern=f"^({'|'.join(JUDGES)}):.*[^ ]")])
]
Text = Annotated[str, Field(min_length=1)]
Natural = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0)]


class JudgeLimits(Frozen):
    """Limits of one run of a command for each judge behind an endpoint."""

    concurrency: Natural = 4
    """Concurrent requests."""
    timeout_s: Seconds = 120
    """Seconds that one request may take."""
    deadline_s: Seconds = 604_800
    """Seconds from the first request to the last."""
    max_calls: Natural = 20_000
    """Requests sent, including retries."""
    max_tokens: Natural = 50_000_000
    """Tokens of prompts and replies, as the endpoint counts them."""


class CompletionsConfig(Frozen):
    """Completions of held-out prompts that every evaluation lets the policy write, at every rung and at the end."""

    prompts: Annotated[int, Field(ge=2)] = 16
    """How many, the first distinct ones of `dataset.eval`."""
    max_new_tokens: Natural = 64
    """Tokens after which a completion is cut. A cut one counts as so many, for the policy and for the untrained model,
    so that the ratio of their lengths nears 1 where most are cut."""
    temperature: NotNegative = 1.0
    """Of the tokens drawn, under the same seeds at every evaluation of every trial; 0 takes the most probable ones."""
    reward: Text | None = None
    """What a completion is worth, reported as `eval_reward`: `vader`, `package.module:function`, or the folder or hub
    id of a sequence-classification model. A model is loaded by every worker. Null rewards nothing."""


class EvaluationConfig(Frozen):
    """MT-Bench in the loop: the trials that answer its questions, how they answer, and the judges."""

    when: Literal["never", "final_rung", "best"] = "final_rung"
    """`final_rung` examines every complete trial while others train; `best` examines the `best` trials
    by the search's metric at its end; `never` examines none."""
    best: Natural = 3
    """Trials that are examined under `when: best`."""
    questions: Text = "builtin:mt-bench"
    """`builtin:mt-bench` or a file in FastChat's format."""
    references: Text | None = None
    """Right answers in FastChat's format; null uses those that belong to the questions."""
    judge_prompts: Text = "builtin:mt-bench"
    """Prompts of the judges: `builtin:mt-bench` or a file in FastChat's format."""
    limit: Natural | None = None
    """Uses only the first questions."""
    max_new_tokens: Natural = 1024
    """Longest answer in tokens."""
    batch_size: Natural = 8
    """Answers that a model writes at a time."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Of sampled answers."""
    pairwise: bool = False
    """Also compares each trial's answers with those of the DPO baseline."""
    judges: Annotated[list[JudgeName], Field(min_length=1)]
    """Kind and model of each, such as `openai:gpt-4o` or `local:org/model`."""
    judge_url: Text | None = None
    """Endpoint of the judges that have one: http(s)://host[:port][/path] and nothing else."""
    judge_key_file: Text | None = None
    """File with the endpoint's key, which only the driver reads; else OPENAI_API_KEY."""
    judge_max_tokens: Natural = 2048
    """Longest reply of a judge behind an endpoint in tokens, its thoughts included."""
    limits: JudgeLimits = JudgeLimits()
    """Limits of each judge behind an endpoint."""

    @model_validator(mode="after")
    def _laws(self) -> Self:
        if len(set(self.judges)) < len(self.judges):
            raise law(f"every judge judges once, but got {self.judges}", key="judges")
        if self.judge_url is not None and not is_plain(self.judge_url):
            raise law(
                "http(s)://host[:port][/path] and nothing else is needed, since it is stored in many places; a key "
                "comes from judge_key_file or OPENAI_API_KEY",
                key="judge_url",
            )
        if self.judge_url is not None and not any(map(is_remote, self.judges)):
            forms = " or ".join(kind.form for kind in JUDGES.values() if kind.remote)
            raise law(f"only a judge {forms} has a judge_url, and there is none in judges", key="judge_url")
        return self
