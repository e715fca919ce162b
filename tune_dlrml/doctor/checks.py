"""Everything about a search that can be checked before a process starts."""

from collections.abc import Callable, Generator, Iterator
from functools import partial
from typing import TYPE_CHECKING

from tune_dlrml.config import SearchConfig
from tune_dlrml.data import Section, select_pairs
from tune_dlrml.doctor.finding import Finding
from tune_dlrml.doctor.loss_box import loss_box_of
from tune_dlrml.doctor.memory import examine_memory
from tune_dlrml.errors import InputError
from tune_dlrml.evaluation.completions import Completer
from tune_dlrml.losses.registry import AnyLoss
from tune_dlrml.metrics import METRICS
from tune_dlrml.models.loading import load_reader, parse_model_reference
from tune_dlrml.search.confirm.power import power_of_shares
from tune_dlrml.search.starting import check_points
from tune_dlrml.search.validity import check_model, references, slow_precision, try_function
from tune_dlrml.space import SearchSpace

if TYPE_CHECKING:
    from tune_dlrml.losses.custom.validation import Observation


def examine(config: SearchConfig) -> Iterator[Finding]:
    """Run every check except that of the resources; an error does not stop the later ones."""
    sound: set[str] = set()
    train: Section | None = None
    for subject, named, check in references(config):
        finding = _examine_reference(subject, named, partial(check_model, config) if subject == "model" else check)
        sound |= {subject} if finding.level == "ok" else set()
        yield finding
    if sound.issuperset(f"dataset.{key}" for key in config.dataset.references()):
        train = yield from _examine_data(config, with_model="model" in sound)
    slow = slow_precision(config)
    if slow is not None:
        yield Finding("training.bf16", "warning", slow)
    for index, (label, loss) in enumerate(SearchSpace(config).branches.items()):
        yield from _examine_loss(config, index, label, loss)
    if config.search.points:
        yield _examine_reference("search.points", f"{len(config.search.points)}", partial(check_points, config))
    yield examine_memory(config, train)


def _examine_reference(subject: str, named: str, check: Callable[[], object]) -> Finding:
    try:
        check()
    except InputError as error:
        return Finding(subject, "error", str(error))
    return Finding(subject, "ok", named)


def _examine_data(config: SearchConfig, *, with_model: bool) -> Generator[Finding, None, Section | None]:
    """Check which rows are used; their tokens are checked only where a model provides the tokenizer.

    Returns:
        The training rows; None where they cannot be used.
    """
    load = partial(load_reader, parse_model_reference(config.model)) if with_model else None
    try:
        selection = select_pairs(config.dataset, config.training, load)
    except InputError as error:
        yield Finding("dataset", "error", str(error))
        return None
    for note in selection.notes:
        yield Finding("dataset", "warning", note)
    held_out = selection.sections["eval"]
    yield _examine_sizes(selection.sections["train"], held_out)
    yield from _examine_power(config, len(held_out.pairs), len(selection.sections.get("test", held_out).pairs))
    if config.completions is not None:
        told = f"{config.completions.prompts} prompts, {config.completions.reward or 'without a reward'}"
        yield _examine_reference("completions", told, partial(Completer.of, config, held_out))
    return selection.sections["train"]


def _examine_sizes(train: Section, held_out: Section) -> Finding:
    text = f"{len(train.pairs)} pairs to train on, {len(held_out.pairs)} held out"
    if len(held_out.pairs) < 32:
        error = 0.5 / len(held_out.pairs) ** 0.5
        return Finding("dataset", "warning", f"{text}: the standard error of the accuracy is up to {error:.2f}")
    return Finding("dataset", "ok", text)


def _examine_power(config: SearchConfig, pairs: int, confirm_pairs: int) -> Iterator[Finding]:
    metric, confirm = METRICS[config.search.metric], config.search.confirm
    power = power_of_shares(metric, pairs=pairs, confirm=confirm, confirm_pairs=confirm_pairs)
    if power is not None:
        yield Finding(
            "power",
            "ok",
            f"{power.sentence()}; that is by formula, for settings that are independent on a pair and without what "
            "seeds and the order of pairs add: --measure measures both",
        )


def _examine_loss(config: SearchConfig, index: int, label: str, loss: AnyLoss) -> Iterator[Finding]:
    """Check a user's function, and the share of a branch's box whose loss is unsuitable."""
    key = f"{config.losses_key}[{index}].{loss.written}"
    try:
        if loss.written is not None:
            yield from _function_findings(key, try_function(loss))
        if not loss.needs_reference:
            yield Finding(
                f"{config.losses_key}: {label}",
                "ok",
                "takes no reference, so it has no shape over the margin to look at",
            )
            return
        loss_box = loss_box_of(label, loss, config.divergence.margin_limit)
    except InputError as error:
        yield Finding(key, "error", str(error))
        return
    yield Finding(f"{config.losses_key}: {label}", "ok" if loss_box.sound else "warning", loss_box.sentence(), loss_box)


def _function_findings(key: str, seen: "list[Observation]") -> Iterator[Finding]:
    """One finding for each warning, and one for all that is in order."""
    yield from (Finding(key, "warning", each.text) for each in seen if each.level == "warning")
    well = "; ".join(each.text for each in seen if each.level == "ok")
    if well:
        yield Finding(key, "ok", well)
