"""Checks of a search's input before a process starts."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pydantic import ValidationError

from tune_dlrml.config import SearchConfig
from tune_dlrml.data import check_dataset_reference, parse_dataset_reference
from tune_dlrml.errors import InputError
from tune_dlrml.losses.registry import AnyLoss
from tune_dlrml.models.division import refuse_undividable
from tune_dlrml.models.loading import (
    ModelReference,
    Reader,
    check_loadable,
    check_model_reference,
    load_reader,
    load_shapes,
    parse_model_reference,
    quantization_of,
)
from tune_dlrml.models.quantization import check_bitsandbytes, check_layers
from tune_dlrml.space import SearchSpace, loss_at
from tune_dlrml.space_points import sampled
from tune_dlrml.system.processor import multiplies_bfloat16
from tune_dlrml.system.urls import without_password

if TYPE_CHECKING:
    from tune_dlrml.losses.custom.validation import Observation

TRACKING_SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql", "databricks")
FUNCTION_EXPONENT = 3
"""Base-2 logarithm of the points at which a user's function is tried, beside both ends of its box."""


def check_references(config: SearchConfig) -> None:
    """Refuse a model, a data set or a tracking store that cannot exist; seconds, with or without a network.

    Raises:
        InputError: Naming the key, the reference and what it may be.
    """
    for subject, _, check in references(config):
        try:
            check()
        except InputError as error:
            raise InputError(f"{subject}: {error}") from None


def references(config: SearchConfig) -> Iterator[tuple[str, str, Callable[[], object]]]:
    """The references of a search: key, text, and check, which raises InputError."""
    for section, text in config.dataset.references().items():
        yield f"dataset.{section}", text, partial(_check_dataset, text, config)
    yield "model", config.model, lambda: check_model_reference(parse_model_reference(config.model))
    uri = config.tracking.mlflow
    if uri is not None:
        yield "tracking.mlflow", without_password(uri), partial(_check_tracking_uri, uri)


def _check_dataset(text: str, config: SearchConfig) -> None:
    check_dataset_reference(parse_dataset_reference(text), config.dataset)


def check_model(config: SearchConfig) -> None:
    """Refuse a model that cannot be trained; imports torch, while `check_references` checks only that it exists.

    Raises:
        InputError: It does not exist, or cannot be loaded as configured.
    """
    reference = parse_model_reference(config.model)
    check_model_reference(reference)
    _check_trainable(reference, config)


def reader_of_model(config: SearchConfig) -> Reader:
    """The reader of the model's texts, after a check that the model can be trained; imports torch.

    Raises:
        InputError: The model cannot be loaded as configured, or has no tokenizer.
    """
    try:
        reference = parse_model_reference(config.model)
        _check_trainable(reference, config)
        return load_reader(reference)
    except InputError as error:
        raise InputError(f"model: {error}") from None


def _check_trainable(reference: ModelReference, config: SearchConfig) -> None:
    """Refuse a model that cannot be loaded, quantized, divided and given an adapter as the settings say.

    Raises:
        InputError: It cannot.
    """
    training = config.training
    model = check_loadable(reference, training.attn_implementation)
    if training.quantization is not None:
        check_bitsandbytes()
    own = quantization_of(reference)
    if own is not None:
        _check_own_quantization(own, config)
    given = own or training.bitsandbytes()
    if given is not None:
        check_layers(model, given, (training.lora.modules_to_save if training.lora else None) or ())
    if config.resources.fsdp is True:
        refuse_undividable(load_shapes(reference), config.resources.workers, all_weights=training.lora is None)
    if training.lora is not None:
        from tune_dlrml.training.adapters import check_adapter

        check_adapter(model, training.lora)


def _check_own_quantization(own: Mapping[str, Any], config: SearchConfig) -> None:
    """Check the laws of `training.quantization` for weights that are quantized in the model's files."""
    if config.training.quantization is not None:
        raise InputError("its weights are quantised in its files; leave training.quantization out")
    bits = {key: own.get(key) is True for key in ("load_in_4bit", "load_in_8bit")}
    try:
        undividable = config.training.at({"quantization": bits}).undividable()
    except ValidationError as error:
        found = error.errors()[0]
        key, reason = found["ctx"]["key"], found["msg"]
        raise InputError(f"its weights are quantised in its files, for which training.{key} {reason}") from None
    if config.resources.fsdp is True and undividable is not None:
        raise InputError(f"its weights are quantised in its files: {undividable[1]}, but resources.fsdp is true")


def _check_tracking_uri(uri: str) -> None:
    """Check the form of an MLflow URI. The store need not answer, since training does not wait for it.

    Raises:
        InputError: MLflow has no such form.
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


def try_function(loss: AnyLoss) -> "list[Observation]":
    """Properties of a user's function over its box: a warning where one is violated at any point, else ok.

    Raises:
        InputError: It cannot be trained with.
    """
    found: dict[str, Observation] = {}
    for point in _points_to_try(loss):
        shown = ", ".join(
            f"{key.removeprefix('params.')}={value:.3g}" for key, value in point.items() if _is_real(value)
        )
        at = f" (at {shown})" if shown else ""
        try:
            observations = loss_at(loss, point).observations()
        except InputError as error:
            raise InputError(f"{error}{at}") from None
        for each in observations:
            if each.level == "warning":
                found.setdefault(f"{each.check}, {' '.join(each.text.split()[:2])}", replace(each, text=each.text + at))
            else:
                found.setdefault(f"{each.check}, ok, {each.text}", each)
    troubled = {each.check for each in found.values() if each.level == "warning"}
    return [each for each in found.values() if each.level == "warning" or each.check not in troubled]


def _points_to_try(loss: AnyLoss) -> Iterator[dict[str, Any]]:
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
    """Try users' functions before a search, and tie the search to their files.

    Returns:
        The search with the hash of each file in its loss, and what the user should know about them.

    Raises:
        InputError: One cannot be trained with; naming its key.
    """
    losses: list[AnyLoss] = []
    notes: list[str] = []
    known = config.known_losses().losses
    for index, (label, loss) in enumerate(SearchSpace(config).branches.items()):
        given = known[index]
        if given.written is not None:
            try:
                given = given.tied()
                seen = try_function(loss)
            except InputError as error:
                raise InputError(f"{config.losses_key}[{index}].{given.written}: {error}") from None
            notes += [f"loss {label}: {each.text}" for each in seen if each.level == "warning"]
        losses.append(given)
    return config.with_losses(losses), tuple(notes)


def slow_precision(config: SearchConfig) -> str | None:
    """What a person should know of a search that asks for bfloat16 on a CPU that is slow at it; else None."""
    training = config.training
    if not training.in_bfloat16 or training.quantization is not None or config.resources.gpus_per_worker:
        return None
    if multiplies_bfloat16():
        return None
    return (
        "a CPU needs AVX-512 (x86) or BF16 instructions (ARM) to be fast in bfloat16, and this one has neither, so "
        "that a step takes many times as long as in float32; leave the key out, or set it to auto or false"
    )
