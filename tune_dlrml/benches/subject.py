"""Who is examined: a model, a trial with the weights that it ended with, or a model that already runs elsewhere."""

import hashlib
import re
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tune_dlrml.config import NAME_PATTERN, SearchConfig, TrainingConfig, load_config
from tune_dlrml.errors import InputError
from tune_dlrml.evaluation.endpoint.settings import EndpointSettings
from tune_dlrml.evaluation.engines.registry import IN_PROCESS, REMOTE, Live, Model, Stored
from tune_dlrml.models.loading import check_model_reference, parse_model_reference
from tune_dlrml.records import State
from tune_dlrml.search.result import SearchPlace
from tune_dlrml.space import TrialSpec
from tune_dlrml.study.history import StudyHistory, TrialRow
from tune_dlrml.training.checkpoint import MARKER, newest_checkpoint

if TYPE_CHECKING:
    from tune_dlrml.evaluation.frontier.points import Compared

FILES = ("*.safetensors", "*config.json", "tokenizer*", "chat_template*")
"""What of a model's folder its answers depend on."""
FORMS = "a model reference, `<search>:<trial>` such as quickstart:17, or `openai:<model>` behind an endpoint"
_TRIAL = re.compile(r"(?P<search>[^:/\s]+):(?P<number>\d+)")


@dataclass(frozen=True)
class Served(Model):
    """A model behind an OpenAI-compatible endpoint.

    Attributes:
        name: As it stands beside its numbers.
        settings: Where it is.
        engine: What makes its answers.
    """

    name: str
    settings: EndpointSettings
    engine: str = REMOTE

    def served(self) -> EndpointSettings:
        """See `Model.served`."""
        return self.settings

    def identity(self) -> dict[str, Any]:
        """Whose answers they are, as JSON; the endpoint is trusted to serve one model under one name."""
        return {"name": self.name, "engine": self.engine, "model": self.settings.model, "url": self.settings.address}


@dataclass(frozen=True)
class Loaded(Model):
    """A model that is loaded into this process.

    Attributes:
        name: As it stands beside its numbers.
        model: Reference of the base model.
        checkpoint: What a trial trained on it; None is the base model itself.
        config: The trial's search.
        spec: The trial.
        engine: What makes its answers.
    """

    name: str
    model: str
    checkpoint: Path | None = None
    config: SearchConfig | None = None
    spec: TrialSpec | None = None
    engine: str = IN_PROCESS

    @property
    def training(self) -> TrainingConfig | None:
        """Settings of the trial."""
        return None if self.spec is None else self.spec.training

    def identity(self) -> dict[str, Any]:
        """Whose answers they are, as JSON: another one for other weights, also under the same name.

        Files of a folder are identified by size and time; a hub id is assumed not to change.
        """
        reference = parse_model_reference(self.model)
        folder = Path(reference.location) if reference.kind == "folder" else None
        files = {} if folder is None else {path.name: path.stat() for form in FILES for path in folder.glob(form)}
        marker = None if self.checkpoint is None else (self.checkpoint / MARKER).read_bytes()
        return {
            "name": self.name,
            "engine": self.engine,
            "model": self.model,
            "files": {name: [status.st_size, status.st_mtime_ns] for name, status in files.items()},
            # The marker holds the sha256 of every file of the checkpoint.
            "checkpoint": None if marker is None else hashlib.sha256(marker).hexdigest(),
        }

    def live(self) -> Live:
        """See `Model.live`; it answers in the precision that its trial was trained in."""
        policy, tokenizer = self.policy()
        return Live(self.name, policy, tokenizer, self.precision(policy))

    def stored(self) -> Stored:
        """See `Model.stored`.

        Raises:
            InputError: The trial trained all weights, or on a quantized base.
        """
        if self.checkpoint is not None and not (self.checkpoint / "adapter_config.json").exists():
            raise InputError(
                f"{self.name}: vLLM takes the adapter of a trial, but this one trained all weights; use transformers"
            )
        if self.training is not None and self.training.quantization is not None:
            raise InputError(
                f"{self.name}: its base is quantized by the search's settings, which vLLM does not do; use transformers"
            )
        return Stored(self.model, self.checkpoint)

    def precision(self, policy: Any) -> AbstractContextManager[Any]:
        """The precision that the trial was trained in, for as often as it is entered."""
        from tune_dlrml.training.reference.logps import computing

        return nullcontext() if self.training is None else computing(policy, self.training)

    def policy(self) -> tuple[Any, Any]:
        """Model and tokenizer."""
        from tune_dlrml.evaluation.engines.policy import load_policy

        return load_policy(self.model, self.checkpoint, self.training)

    def compared(self) -> "Compared":
        """The policy and the base model that it is measured from; a base model is its own reference."""
        from tune_dlrml.evaluation.engines.policy import load_policy
        from tune_dlrml.evaluation.frontier.points import Compared

        policy, tokenizer = self.policy()
        if hasattr(policy, "disable_adapter"):
            return Compared(policy, tokenizer)
        reference = policy if self.checkpoint is None else load_policy(self.model, None, self.training)[0]
        return Compared(policy, tokenizer, reference)


Subject = Served | Loaded


def parse_subject(text: str, place: SearchPlace, engine: str = IN_PROCESS) -> Loaded:
    """The model or the trial that `text` means.

    Args:
        text: `<search>:<trial>`, or a model reference.
        place: Where searches are.
        engine: What makes its answers.

    Raises:
        InputError: There is no such model, search or trial, or the trial has no model.
    """
    match = _TRIAL.fullmatch(text)
    if match is not None:
        return _trial(match["search"], int(match["number"]), place, engine)
    try:
        reference = parse_model_reference(text)
        check_model_reference(reference)
    except InputError as error:
        raise InputError(f"MODEL {text!r}: {error} Or it is {FORMS}.") from None
    return Loaded(str(reference), str(reference), engine=engine)


def complete_trials(search: str, place: SearchPlace) -> list[Loaded]:
    """Every trial of a search that used up its budget, with the model that it made.

    Raises:
        InputError: There is no such search, or none of its trials is complete.
    """
    place, config, rows = _search(search, place)
    trials = [_loaded(search, row, place, config, IN_PROCESS) for row in rows if row.state is State.COMPLETE]
    if not trials:
        raise InputError(f"a trial is examined with its final model, but search {search!r} has no complete one")
    return trials


def is_search(text: str, place: SearchPlace) -> bool:
    """Whether there is a search of this name."""
    return re.fullmatch(NAME_PATTERN, text) is not None and (place.storage / text / "search.yaml").exists()


def _trial(search: str, number: int, place: SearchPlace, engine: str) -> Loaded:
    place, config, rows = _search(search, place)
    row = next((row for row in rows if row.number == number), None)
    if row is None:
        raise InputError(f"search {search!r} has trials 0 to {len(rows) - 1}, but got {number}")
    if row.state is not State.COMPLETE:
        raise InputError(
            f"trial {number} of search {search!r} is {row.state}: {row.stop_reason}; only a complete one keeps its "
            "model"
        )
    return _loaded(search, row, place, config, engine)


def _search(search: str, place: SearchPlace) -> tuple[SearchPlace, SearchConfig, list[TrialRow]]:
    resolved = place.folder(search) / "search.yaml"
    if not resolved.exists():
        raise InputError(f"there is no search {search!r} in {place.storage.resolve()}; give its --storage")
    place, config = place.of(load_config(resolved))
    history = StudyHistory.open(place.study_url(search), search)
    rows = history.rows()
    history.close()
    return place, config, rows


def _loaded(search: str, row: TrialRow, place: SearchPlace, config: SearchConfig, engine: str) -> Loaded:
    folder = place.folder(search) / "trials" / str(row.number)
    checkpoint = newest_checkpoint(folder)
    if checkpoint is None:
        raise InputError(f"a complete trial keeps its model, but {folder} has no whole checkpoint any more")
    return Loaded(f"{search}:{row.number}", place.model(config), checkpoint.path, config, row.spec, engine)
