"""Judges by the first word of their names: the one table that search-space files, doctor, jury and benches read.

It imports no judge and no library, so that a search-space file is checked against it in no time.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple


class JudgeKind(NamedTuple):
    """One way to judge.

    Attributes:
        form: How such a judge is named, for messages.
        place: Of its class, a `NamedJudge`; imported where the first judge of this kind is made.
        remote: Whether it is behind an endpoint, to which `judge_url` and a key belong.
    """

    form: str
    place: str
    remote: bool = False


JUDGES: Mapping[str, JudgeKind] = MappingProxyType(
    {
        "openai": JudgeKind(
            "`openai:<model>` of an OpenAI-compatible endpoint",
            "tune_dlrml.evaluation.judges.endpoint:EndpointJudge",
            remote=True,
        ),
        "local": JudgeKind("`local:<model reference>`", "tune_dlrml.evaluation.judges.local:LocalJudge"),
    }
)


def judge_kind(name: object) -> JudgeKind | None:
    """The kind of the judge `<kind>:<model>`; None if nothing is named like that."""
    kind, _, model = name.partition(":") if isinstance(name, str) else ("", "", "")
    return JUDGES.get(kind) if model.strip() else None


def is_remote(name: str) -> bool:
    """Whether a judge is behind an endpoint."""
    kind = judge_kind(name)
    return kind is not None and kind.remote
