"""Everything about a search that can be checked before a process starts."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from tune_dlrml.config import AnyLoss, Range, SearchConfig
from tune_dlrml.data import check_dataset_reference, load_pairs, parse_dataset_reference, shared_prompts
from tune_dlrml.errors import InputError
from tune_dlrml.models import check_model_reference, parse_model_reference
from tune_dlrml.space import SearchSpace, loss_at

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
    """Refuse a model or a data set that is not there; a matter of seconds, with or without a network.

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
    for subject, check in _references(config):
        yield from _as_findings(subject, check)
    yield from _as_findings("dataset", lambda: _examine_data(config))
    for label, loss in SearchSpace(config).branches.items():
        yield _examine_loss(config, label, loss)


def _references(config: SearchConfig) -> Iterator[tuple[str, Callable[[], Finding]]]:
    def model() -> Finding:
        check_model_reference(parse_model_reference(config.model))
        return Finding("model", "ok", config.model)

    def dataset(section: str, text: str) -> Finding:
        check_dataset_reference(parse_dataset_reference(text))
        return Finding(f"dataset.{section}", "ok", text)

    for section, text in config.dataset.flat().items():
        yield f"dataset.{section}", partial(dataset, section, text)
    yield "model", model


def _as_findings(subject: str, check: Callable[[], Finding]) -> Iterator[Finding]:
    try:
        yield check()
    except InputError as error:
        yield Finding(subject, "error", str(error))


def _examine_data(config: SearchConfig) -> Finding:
    train = load_pairs(config.dataset.train, section="train")
    held_out = load_pairs(config.dataset.eval, section="eval")
    text = f"{len(train)} pairs to train on, {len(held_out)} held out"
    shared = shared_prompts(train, held_out)
    if shared:
        return Finding("dataset", "warning", f"{text}; {shared} held-out prompts are trained on, too")
    if len(held_out) < 32:
        error = 0.5 / len(held_out) ** 0.5
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
