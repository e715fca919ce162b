"""What makes a model's answers, by name: the one table that the training loop, `evaluate` and the frontier read.

It imports no engine and no library of one, so that a search is prepared without them.
"""

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from pkgutil import resolve_name
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, Self

from tune_dlrml.errors import InputError
from tune_dlrml.evaluation.endpoint.settings import EndpointSettings
from tune_dlrml.evaluation.records import Chat, Engine, Sampled


class EngineKind(NamedTuple):
    """One way to make answers.

    Attributes:
        place: Of its class, a `NamedEngine`; imported where the first engine of this kind is made.
        remote: Whether the model runs elsewhere.
    """

    place: str
    remote: bool = False


ENGINES: Mapping[str, EngineKind] = MappingProxyType(
    {
        "transformers": EngineKind("tune_dlrml.evaluation.engines.transformers:TransformersEngine"),
        "vllm": EngineKind("tune_dlrml.evaluation.engines.vllm:VllmEngine"),
        "endpoint": EngineKind("tune_dlrml.evaluation.engines.endpoint:EndpointEngine", remote=True),
    }
)
IN_PROCESS, REMOTE = "transformers", "endpoint"
"""What lets a model answer that stands in this process, as in the training loop, and one behind an endpoint."""


Deal = Callable[[Callable[[Any], Any], Sequence[Any]], list[Any]]
"""Puts every item through a call and gives what came of each, in their order."""


def one_after_another(call: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    """The `Deal` of a process that has a whole model."""
    return [call(item) for item in items]


class Model:
    """A model that is to answer. An engine takes it in the form that it needs; one that there is not is refused.

    Attributes:
        name: As it stands beside its answers.
    """

    name: str

    def live(self) -> "Live":
        """The model in this process, loaded if need be."""
        raise self._missing("in this process")

    def stored(self) -> "Stored":
        """The model on disk."""
        raise self._missing("on a disk")

    def served(self) -> EndpointSettings:
        """Where the model is served."""
        raise self._missing("behind an endpoint")

    def _missing(self, where: str) -> InputError:
        return InputError(f"an engine needs {self.name} {where}, which is missing here; use another engine")


@dataclass(frozen=True)
class Live(Model):
    """A model in this process as it stands, its adapter on if it has one.

    Attributes:
        name: As it stands beside its answers.
        policy: A causal language model, bare or wrapped by PEFT.
        tokenizer: The model's own.
        precision: In which it answers, for as often as it is entered.
        deal: Of the batches, among the processes that hold the model together.
    """

    name: str
    policy: Any
    tokenizer: Any
    precision: AbstractContextManager[Any] = field(default_factory=nullcontext)
    deal: Deal = one_after_another

    def live(self) -> "Live":
        """Itself."""
        return self


class Stored(NamedTuple):
    """A model on disk: the reference of a base model, and the folder of a LoRA adapter on it, if it has one."""

    model: str
    adapter: Path | None


class NamedEngine(Engine, Protocol):
    """An engine that stands in `ENGINES`."""

    @property
    def unanswered(self) -> int:
        """How many chats got no reply so far, though others did; their answer is empty."""

    @classmethod
    def of(
        cls, model: Model, *, max_new_tokens: int, batch_size: int, kept: MutableMapping[str, str] | None = None
    ) -> Self:
        """The engine of a model.

        Args:
            model: Who answers.
            max_new_tokens: Tokens after which an answer is cut.
            batch_size: Chats answered at once.
            kept: What the same model replied before, where replies cost money; new ones are put there.

        Raises:
            InputError: The model is not there in the form that is needed, or an answer has no room in its context.
        """

    def close(self) -> None:
        """Close connections, and so end running requests."""


class SamplingEngine(NamedEngine, Protocol):
    """An engine that also returns the tokens of its answers."""

    def sample(self, chats: Sequence[Chat | str], *, temperature: float, seed: int) -> list[Sampled]:
        """One completion of each chat, and of a text as it stands, in their order; see `Engine.generate`."""


def make_engine(
    name: str, model: Model, *, max_new_tokens: int, batch_size: int, kept: MutableMapping[str, str] | None = None
) -> NamedEngine:
    """The engine of this name for a model; see `NamedEngine.of`."""
    engine: NamedEngine = resolve_name(ENGINES[name].place).of(
        model, max_new_tokens=max_new_tokens, batch_size=batch_size, kept=kept
    )
    return engine


def engine_in_process(model: Live, *, max_new_tokens: int, batch_size: int) -> SamplingEngine:
    """The engine of a model that stands in this process, such as one that is being trained."""
    engine: SamplingEngine = resolve_name(ENGINES[IN_PROCESS].place).of(
        model, max_new_tokens=max_new_tokens, batch_size=batch_size
    )
    return engine
