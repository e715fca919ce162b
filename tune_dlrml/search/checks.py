"""Everything about a search that can be checked before a process starts."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, cast
from urllib.parse import urlsplit

from tune_dlrml.config import AnyLoss, SearchConfig
from tune_dlrml.config.losses import CustomLoss
from tune_dlrml.data import Section, check_dataset_reference, parse_dataset_reference, select_pairs
from tune_dlrml.errors import InputError
from tune_dlrml.models import Reader, check_loadable, check_model_reference, load_reader, parse_model_reference
from tune_dlrml.own_code import load_function
from tune_dlrml.search.box import Box, box_of, sampled
from tune_dlrml.space import SearchSpace, loss_at
from tune_dlrml.urls import without_password

if TYPE_CHECKING:
    from tune_dlrml.losses.validation import Observation

TRACKING_SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql", "databricks")
Level = Literal["ok", "warning", "error"]
FUNCTION_EXPONENT = 3
"""Base-2 logarithm of the points at which a user's function is tried, beside both ends of its box."""


@dataclass(frozen=True)
class Finding:
    """What one check found; of a loss, with the shares of its box."""

    subject: str
    level: Level
    text: str
    box: Box | None = None

    def as_json(self) -> dict[str, str]:
        """What it is about, how bad that is, and what was found."""
        return {"subject": self.subject, "level": self.level, "text": self.text}


def check_references(config: SearchConfig) -> None:
    """Refuse a model, a data set or a tracking store that cannot be; seconds, with or without a network.

    Raises:
        InputError: Naming the key, the reference and what it may be.
    """
    for subject, check in _references(config):
        try:
            check()
        except InputError as error:
            raise InputError(f"{subject}: {error}") from None


def examine(config: SearchConfig) -> Iterator[Finding]:
    """Every check but that of the resources; an error does not keep the later ones from running."""
    sound: set[str] = set()
    checks = dict(_references(config)) | {"model": partial(_examine_model, config)}
    for subject, check in checks.items():
        finding = _as_finding(subject, check)
        sound |= {subject} if finding.level == "ok" else set()
        yield finding
    if sound.issuperset(f"dataset.{key}" for key in config.dataset.references()):
        yield from _examine_data(config, with_model="model" in sound)
    for index, (label, loss) in enumerate(SearchSpace(config).branches.items()):
        yield from _examine_loss(config, index, label, loss)


def _references(config: SearchConfig) -> Iterator[tuple[str, Callable[[], Finding]]]:
    def model() -> Finding:
        check_model_reference(parse_model_reference(config.model))
        return Finding("model", "ok", config.model)

    def dataset(section: str, text: str) -> Finding:
        check_dataset_reference(parse_dataset_reference(text), config.dataset)
        return Finding(f"dataset.{section}", "ok", text)

    for section, text in config.dataset.references().items():
        yield f"dataset.{section}", partial(dataset, section, text)
    yield "model", model
    uri = config.tracking.mlflow
    if uri is not None:
        yield "tracking.mlflow", partial(_examine_tracking_uri, uri)


def _examine_model(config: SearchConfig) -> Finding:
    reference = parse_model_reference(config.model)
    check_model_reference(reference)
    check_loadable(reference, config.training.attn_implementation)
    return Finding("model", "ok", config.model)


def reader_of_model(config: SearchConfig) -> Reader:
    """What reads the model's texts, after the model itself was found to be one that can be trained; imports torch.

    Raises:
        InputError: The model cannot be loaded as it must be, or has no tokenizer.
    """
    try:
        reference = parse_model_reference(config.model)
        check_loadable(reference, config.training.attn_implementation)
        return load_reader(reference)
    except InputError as error:
        raise InputError(f"model: {error}") from None


def _examine_tracking_uri(uri: str) -> Finding:
    """Whether an MLflow store can be meant; whether it answers is another matter, since training does not wait for it.

    Raises:
        InputError: It is none of the forms that MLflow takes.
    """
    try:
        parts = urlsplit(uri)
        served = parts.scheme in ("http", "https")
        legal = parts.scheme.partition("+")[0] in TRACKING_SCHEMES
        legal = legal and not (served and (parts.hostname is None or parts.port == 0))
    except ValueError:
        legal = False
    if not legal:
        raise InputError(
            "http(s)://host[:port] of a server, or the URL of a database such as sqlite:///file or postgresql://..., "
            f"is needed, but got {without_password(uri)!r}"
        )
    return Finding("tracking.mlflow", "ok", without_password(uri))


def _as_finding(subject: str, check: Callable[[], Finding]) -> Finding:
    try:
        return check()
    except InputError as error:
        return Finding(subject, "error", str(error))


def _examine_data(config: SearchConfig, *, with_model: bool) -> Iterator[Finding]:
    """What is used of the rows; their tokens are looked at only where there is a model to give the tokenizer."""
    load = partial(load_reader, parse_model_reference(config.model)) if with_model else None
    try:
        selection = select_pairs(config.dataset, config.training, load)
    except InputError as error:
        yield Finding("dataset", "error", str(error))
        return
    for note in selection.notes:
        yield Finding("dataset", "warning", note)
    yield _examine_sizes(selection.sections["train"], selection.sections["eval"])


def _examine_sizes(train: Section, held_out: Section) -> Finding:
    text = f"{len(train.pairs)} pairs to train on, {len(held_out.pairs)} held out"
    if len(held_out.pairs) < 32:
        error = 0.5 / len(held_out.pairs) ** 0.5
        return Finding("dataset", "warning", f"{text}: a standard error of the accuracy of up to {error:.2f}")
    return Finding("dataset", "ok", text)


def _examine_loss(config: SearchConfig, index: int, label: str, loss: AnyLoss) -> Iterator[Finding]:
    """What a user's function does, and which share of a branch's box nobody wants."""
    key = f"space.losses[{index}].function"
    try:
        if isinstance(loss, CustomLoss):
            yield from _told_of_function(key, examine_function(loss))
        box = box_of(label, loss, config.divergence.margin_limit)
    except InputError as error:
        yield Finding(key, "error", str(error))
        return
    yield Finding(f"space.losses: {label}", "ok" if box.sound else "warning", box.sentence(), box)


def _told_of_function(key: str, seen: "list[Observation]") -> Iterator[Finding]:
    """What should be otherwise one by one, the rest together."""
    yield from (Finding(key, "warning", each.text) for each in seen if each.level == "warning")
    well = "; ".join(each.text for each in seen if each.level == "ok")
    if well:
        yield Finding(key, "ok", well)


def examine_function(loss: CustomLoss) -> "list[Observation]":
    """What is so about a user's function over its box: what should be otherwise at some point of it, or else at none.

    Raises:
        InputError: It cannot be trained with.
    """
    from tune_dlrml.losses.validation import examine_custom

    found: dict[str, Observation] = {}
    for point in _points_to_try(loss):
        shown = ", ".join(
            f"{key.removeprefix('params.')}={value:.3g}" for key, value in point.items() if _is_real(value)
        )
        at = f" (at {shown})" if shown else ""
        try:
            observations = examine_custom(cast(CustomLoss, loss_at(loss, point)))
        except InputError as error:
            raise InputError(f"{error}{at}") from None
        for each in observations:
            if each.level == "warning":
                found.setdefault(f"{each.check}, {' '.join(each.text.split()[:2])}", replace(each, text=each.text + at))
            else:
                found.setdefault(f"{each.check}, ok, {each.text}", each)
    troubled = {each.check for each in found.values() if each.level == "warning"}
    return [each for each in found.values() if each.level == "warning" or each.check not in troubled]


def _points_to_try(loss: CustomLoss) -> Iterator[dict[str, Any]]:
    """Both ends of all domains at once, and a few points between."""
    domains = loss.domains()
    points = sampled(domains, FUNCTION_EXPONENT)
    yield {key: domain.extremes()[0] for key, domain in domains.items()}
    if domains:
        yield {key: domain.extremes()[-1] for key, domain in domains.items()}
        for row in zip(*(points[key].tolist() for key in domains), strict=True):
            yield dict(zip(domains, row, strict=True))


def _is_real(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def check_functions(config: SearchConfig) -> tuple[SearchConfig, tuple[str, ...]]:
    """Try users' functions before a search, and tie the search to the files that hold them.

    Returns:
        The search with the hash of each file in its loss, and what a person should know of them.

    Raises:
        InputError: One cannot be trained with; naming its key.
    """
    losses: list[AnyLoss] = []
    notes: list[str] = []
    for index, (label, loss) in enumerate(SearchSpace(config).branches.items()):
        given = config.space.losses[index]
        if isinstance(given, CustomLoss) and isinstance(loss, CustomLoss):
            try:
                given = given.model_copy(update={"file_sha256": load_function(given.function).sha256})
                seen = examine_function(loss)
            except InputError as error:
                raise InputError(f"space.losses[{index}].function: {error}") from None
            notes += [f"loss {label}: {each.text}" for each in seen if each.level == "warning"]
        losses.append(given)
    space = config.space.model_copy(update={"losses": losses})
    return config.model_copy(update={"space": space}), tuple(notes)
