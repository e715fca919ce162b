"""Everything about a search that can be checked before a process starts."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal
from urllib.parse import urlsplit

from tune_dlrml.config import AnyLoss, Range, SearchConfig
from tune_dlrml.data import Section, check_dataset_reference, parse_dataset_reference, repeated_pairs, select_pairs
from tune_dlrml.errors import InputError
from tune_dlrml.models import check_model_reference, load_tokenizer, parse_model_reference
from tune_dlrml.space import SearchSpace, loss_at
from tune_dlrml.urls import without_password

TRACKING_SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql", "databricks")
Level = Literal["ok", "warning", "error"]
POINTS = 7
"""Values of each domain at which a loss is tried."""
MARGINS = 201
"""Margins at which a loss is tried, evenly from -margin_limit to +margin_limit of the divergence rule."""


@dataclass(frozen=True)
class Finding:
    """What one check found."""

    subject: str
    level: Level
    text: str


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
    for subject, check in _references(config):
        finding = _as_finding(subject, check)
        sound |= {subject} if finding.level == "ok" else set()
        yield finding
    if sound.issuperset(f"dataset.{key}" for key in config.dataset.references()):
        yield from _examine_data(config, with_model="model" in sound)
    for label, loss in SearchSpace(config).branches.items():
        yield _examine_loss(config, label, loss)


def _references(config: SearchConfig) -> Iterator[tuple[str, Callable[[], Finding]]]:
    def model() -> Finding:
        check_model_reference(parse_model_reference(config.model))
        return Finding("model", "ok", config.model)

    def dataset(section: str, text: str) -> Finding:
        check_dataset_reference(parse_dataset_reference(text), config.dataset.bad_rows)
        return Finding(f"dataset.{section}", "ok", text)

    for section, text in config.dataset.references().items():
        yield f"dataset.{section}", partial(dataset, section, text)
    yield "model", model
    uri = config.tracking.mlflow
    if uri is not None:
        yield "tracking.mlflow", partial(_examine_tracking_uri, uri)


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
    """What is used of the rows; their lengths are looked at only where there is a model to give the tokenizer."""
    load = partial(load_tokenizer, parse_model_reference(config.model)) if with_model else None
    try:
        selection = select_pairs(config.dataset, config.training, load)
    except InputError as error:
        yield Finding("dataset", "error", str(error))
        return
    for note in selection.notes:
        yield Finding("dataset", "warning", note)
    for section in selection.sections.values():
        repeated = repeated_pairs(section)
        if repeated:
            text = f"{section.key}: {section.some_of_all(repeated)} repeat an earlier one, and so count more than once"
            yield Finding("dataset", "warning", text)
    yield _examine_sizes(selection.sections["train"], selection.sections["eval"])


def _examine_sizes(train: Section, held_out: Section) -> Finding:
    text = f"{len(train.pairs)} pairs to train on, {len(held_out.pairs)} held out"
    if len(held_out.pairs) < 32:
        error = 0.5 / len(held_out.pairs) ** 0.5
        return Finding("dataset", "warning", f"{text}: a standard error of the accuracy of up to {error:.2f}")
    return Finding("dataset", "ok", text)


def _examine_loss(config: SearchConfig, label: str, loss: AnyLoss) -> Finding:
    """Value and slope of one branch over the box that is searched, and the sign at the start."""
    import torch

    from tune_dlrml.losses.registry import PairBatch, build_loss

    limit = config.divergence.margin_limit
    zeros, total, bad, wrong = torch.zeros(MARGINS), 0, 0, 0
    for point in _box(loss):
        scored = build_loss(loss_at(loss, point))
        margin_B = torch.linspace(-limit, limit, MARGINS, requires_grad=True)
        values = scored(PairBatch(margin_B, zeros, zeros, zeros))
        (slope,) = torch.autograd.grad(values.sum(), margin_B)
        total += 1
        bad += not bool((values.isfinite() & slope.isfinite()).all())
        wrong += scored.geometry().starts == "wrong"
    subject = f"space.losses: {label}"
    tried = f"over {total} points of its box x margins of +-{limit:g} nats"
    if bad:
        text = f"not finite at {bad / total:.0%} {tried}"
        return Finding(subject, "warning", text + _advice(loss))
    if wrong:
        return Finding(subject, "warning", f"finite {tried}, but {wrong / total:.0%} of it starts uphill (c > 9.78)")
    return Finding(subject, "ok", f"finite {tried}")


def _advice(loss: AnyLoss) -> str:
    published = getattr(loss, "numerics", "stable") != "stable"
    return "; numerics: stable has the same values without the overflow" if published else "; keep c >= 1"


def _box(loss: AnyLoss) -> Iterator[dict[str, Any]]:
    domains = {
        key: domain.model_copy(update={"num": POINTS}) if isinstance(domain, Range) else domain
        for key, domain in loss.domains().items()
    }
    for values in itertools.product(*(domain.grid() for domain in domains.values())):
        yield dict(zip(domains, values, strict=True))
