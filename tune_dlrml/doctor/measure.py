"""`doctor --measure`: time one worker of a search on this machine, and estimate its cost and its power."""

from collections.abc import Mapping

from tune_dlrml.cluster.cluster import local_capacity
from tune_dlrml.config import ResourcesConfig, SearchConfig
from tune_dlrml.config.settings import BaselineConfig
from tune_dlrml.doctor.cost import Cost, estimate_cost
from tune_dlrml.doctor.power import NO_POWER, measured_power, noise_trials, tested_pairs
from tune_dlrml.errors import InputError
from tune_dlrml.losses.registry import baseline
from tune_dlrml.models.loading import parse_model_reference
from tune_dlrml.search.confirm.power import Power
from tune_dlrml.search.preparation import prepare
from tune_dlrml.search.result import SearchPlace
from tune_dlrml.space import SearchSpace, TrialSpec, loss_at

WORTH_IT = 1.5
"""How much faster the other precision's products must be for a note: they are only half of a step."""


def measure_search(config: SearchConfig, place: SearchPlace, *, steps: int, seeds: int = 2) -> tuple[Cost, Power | str]:
    """Time a few steps of the search's baseline here, without Ray, and estimate cost and power of the whole search.

    The power comes from the held-out margins of the baseline and another setting of the space, each trained that far
    under a few seeds.

    Args:
        config: The search; its `evaluation` is left out of the estimate.
        place: Where it would live; nothing is written there.
        steps: Optimizer steps to train, of which the first is not counted.
        seeds: At least 2.

    Returns:
        The cost, and the power or the reason why it was not found.

    Raises:
        InputError: This machine lacks the resources of one worker, or the input is invalid.
    """
    refuse_other_machine(config.resources)
    prepared = prepare(config.model_copy(update={"evaluation": None}), place)
    timed = timed_trial(config)
    others = noise_trials(config, timed, seeds)
    from tune_dlrml.training.measure import measure_worker

    measured, margins = measure_worker(
        str(parse_model_reference(config.model)),
        prepared.pairs,
        timed,
        config.resources,
        steps=steps,
        completer=prepared.completer,
        others=others,
    )
    cost = estimate_cost(measured, config, prepared.steps)
    if not others:
        return cost, NO_POWER
    return cost, measured_power(config, margins, tested_pairs(config))


def timed_trial(config: SearchConfig) -> TrialSpec:
    """The search's baseline, or the one that it would have by default where it is switched off.

    Of a search without a reference it is the first loss at the low end of its box.
    """
    spec = SearchSpace(config).baseline_spec(0)
    if spec is not None:
        return spec
    if not config.needs_reference():
        branch, loss = next(iter(config.known_losses().branches().items()))
        low = loss_at(loss, {key: domain.extremes()[0] for key, domain in loss.domains().items()})
        return TrialSpec(number=0, branch=branch, loss=low, training=config.training, params={})
    loss = baseline(beta=BaselineConfig().beta)
    return TrialSpec(number=0, branch="baseline", loss=loss, training=config.training, params={})


def refuse_other_machine(resources: ResourcesConfig) -> None:
    """Refuse to time a worker on a machine that lacks the resources of one.

    Raises:
        InputError: Naming what is missing, and where to measure.
    """
    if resources.fsdp is True:
        raise InputError(
            "--measure times one worker in one process, which has to hold the whole model, but resources.fsdp is true; "
            "time it with --set resources.fsdp=false where the model fits one device, or leave --measure out"
        )
    here = local_capacity()
    for name, key in (("CPU", "cpus_per_worker"), ("GPU", "gpus_per_worker")):
        asked = float(getattr(resources, key))
        if asked > here[name]:
            raise InputError(
                f"--measure times a worker on this machine, which must have the {name}s of resources.{key}, but "
                f"{asked:g} are needed and there are {here[name]:g} here; run `tune-dlrml doctor --measure` "
                f"in a job on a node that has them (`ray job submit --entrypoint-num-{name.lower()}s {asked:g} -- ...`)"
            )


def _precision(matrix_rates: Mapping[str, float], *, bf16: bool) -> list[str]:
    """Whether the file asks for the slower precision here; it decides, since trials of two precisions differ."""
    ratio = matrix_rates["bfloat16"] / matrix_rates["float32"]
    if bf16 and ratio < 1:
        return [f"this machine multiplies bfloat16 {1 / ratio:.1f} times slower than float32: training.bf16: false"]
    if not bf16 and ratio > WORTH_IT:
        return [f"this machine multiplies bfloat16 {ratio:.1f} times faster than float32: consider training.bf16: true"]
    return []


def notes(cost: Cost, config: SearchConfig) -> list[str]:
    """What the estimate does not include or had to assume, a sentence each."""
    found = ["Ray's start (10 to 30 s) and the time in which a group waits for its next trial are not included"]
    found += _precision(cost.measured.matrix_rates, bf16=config.training.in_bfloat16)
    if cost.rungs and config.search.scheduler is not None and not config.search.scheduler.pauses:
        found.append(
            f"trials are simulated without ties: where many have the same {config.search.metric} at a rung, as where "
            f"all learn the task, they all continue, up to {cost.most_optimizer_steps:,} optimizer steps"
        )
    if config.resources.workers > 1:
        found.append(
            f"one worker was timed with its own batch: the exchange of gradients among {config.resources.workers} is "
            "not included"
        )
    if config.evaluation is not None and config.evaluation.when != "never":
        found.append("the answers of finished trials and the judges are not included")
    if config.training.warm_up is not None:
        found.append(f"the warm-up of {config.training.warm_up.steps} steps before the search is not included")
    if cost.confirmation is not None and config.dataset.test is not None:
        found.append("confirming trials are judged on dataset.test; their evaluation was timed on dataset.eval")
    if config.search.time_budget_s is not None and config.search.time_budget_s < cost.wall_s.high:
        found.append(
            f"search.time_budget_s ends the search after {config.search.time_budget_s:g} s in any case, summed over "
            "all runs of the same command"
        )
    if cost.measured.longest_share < 0.9:
        found.append(
            f"the longest pair that was timed has {cost.measured.longest_share:.0%} of the tokens of the longest pair, "
            "which needs more memory; raise --measure-steps to time more pairs"
        )
    return found
