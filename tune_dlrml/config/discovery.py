"""Losses that language models propose, and what their proposals may cost."""

from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, PlainValidator, model_validator

from tune_dlrml.config.numbers import Natural, NotNegative, NotNegativeInt, Positive
from tune_dlrml.domains import Frozen, Range, law
from tune_dlrml.losses.registry import LOSSES, AnyLoss
from tune_dlrml.system.urls import is_plain

PROPOSERS: Mapping[str, str] = {"openai": "openai:<model>", "local": "local:<model reference>"}
"""Kinds of proposers, and how one is written."""
SCALARS: Mapping[str, Range] = {
    "beta": Range(kind="log_uniform", low=0.01, high=1.0),
    "beta_kl": Range(kind="log_uniform", low=0.01, high=1.0),
    "tau": Range(kind="log_uniform", low=0.01, high=1.0),
    "alpha": Range(kind="uniform", low=0.0, high=1.0),
    "gamma": Range(kind="uniform", low=0.0, high=2.0),
    "margin": Range(kind="uniform", low=0.0, high=2.0),
    "lam": Range(kind="log_uniform", low=0.01, high=10.0),
}
"""Where the scalars of a proposal are searched by their names, unless it or `space.scalars` says otherwise."""


def _proposer(value: Any) -> Any:
    kind, _, model = value.partition(":") if isinstance(value, str) else ("", "", "")
    if kind not in PROPOSERS or not model.strip():
        raise law(f"a proposer is {' or '.join(PROPOSERS.values())}, but got {value!r}")
    return value


def _named(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


def _listed(value: Any) -> Any:
    if not isinstance(value, (str, list)):
        raise law(f"a string such as `openai:<model>`, or a list of them, is needed, but got {value!r}")
    return [value] if isinstance(value, str) else value


ProposerName = Annotated[
    str,
    PlainValidator(_proposer, json_schema_input_type=Annotated[str, Field(pattern=f"^({'|'.join(PROPOSERS)}):.*[^ ]")]),
]
SeedLoss = Annotated[AnyLoss, BeforeValidator(_named, json_schema_input_type=AnyLoss | str)]
Share = Annotated[float, Field(ge=0)]


class ContextConfig(Frozen):
    """What a proposer sees of the losses that were tried."""

    best: NotNegativeInt = 6
    """Losses with the best objective, with their code and what was measured."""
    recent: NotNegativeInt = 3
    """Newest proposals beside those, refused ones with the reason."""


class DiscoveryLimits(Frozen):
    """Limits over all proposers: `calls` and `tokens` of all runs of the command together."""

    calls: Natural = 200
    """Requests to proposers, including retries."""
    tokens: Natural = 400_000
    """Tokens of prompts and replies."""
    seconds_per_check: Positive = 20
    """Processor time for the checks of one proposal; they may take three times as long on a busy machine."""
    deadline_s: Positive = 604_800
    """Seconds of one run of the command after which nothing is asked."""


class DiscoveryConfig(Frozen):
    """A search over losses that language models propose, in place of `space.losses`."""

    proposer: Annotated[
        list[ProposerName],
        BeforeValidator(_listed, json_schema_input_type=ProposerName | list[ProposerName]),
        Field(min_length=1),
    ]
    """`openai:<model>` or `local:<model reference>`; several take turns."""
    proposer_url: Annotated[str, Field(min_length=1)] | None = None
    """Endpoint of the proposers that have one: http(s)://host[:port][/path] and nothing else; null is OpenAI's."""
    proposer_key_file: Annotated[str, Field(min_length=1)] | None = None
    """File with the endpoint's key, which only the driver reads; else OPENAI_API_KEY."""
    candidates: Natural = 24
    """Proposals that pass the checks and are trained."""
    trials_per_candidate: Natural = 3
    """Trials of each, at different values of its scalars and of `space.training`; one if there is nothing to vary."""
    seeds_losses: Annotated[list[SeedLoss], Field(min_length=1)] = Field(
        default_factory=lambda: [LOSSES[name].config.model_validate({"name": name}) for name in ("dpo", "discopop")]
    )
    """Losses that are trained first, so that proposers and reports have something to compare with."""
    context: ContextConfig = ContextConfig()
    """What a proposer sees."""
    limits: DiscoveryLimits = DiscoveryLimits()
    """When nothing is asked any more."""
    max_new_tokens: Natural = 2048
    """Longest reply in tokens, its thoughts included."""
    temperature: NotNegative = 1.0
    """Of replies."""
    price_per_million_tokens: Share | None = None
    """Of prompts and replies, in whatever currency; the report then tells what the proposals cost."""

    @model_validator(mode="after")
    def _laws(self) -> Self:
        if len(set(self.proposer)) < len(self.proposer):
            raise law(f"every proposer is named once, but got {self.proposer}", key="proposer")
        remote = [each for each in self.proposer if each.startswith("openai:")]
        for key in ("proposer_url", "proposer_key_file"):
            if getattr(self, key) is not None and not remote:
                raise law(f"only a proposer {PROPOSERS['openai']} has a {key}, and there is none", key=key)
        if self.proposer_url is not None and not is_plain(self.proposer_url):
            raise law(
                "http(s)://host[:port][/path] and nothing else is needed, since it is stored in many places; a key "
                "comes from proposer_key_file or OPENAI_API_KEY",
                key="proposer_url",
            )
        return self
