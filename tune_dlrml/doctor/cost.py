"""Estimate of a search's resource usage, from one measured worker and simulated successive halving.

The values of the trials are unknown before a search, so each simulated search draws them: exchangeable, without ties.
Each search also draws how well a trial's value at one rung predicts the next, from not at all to perfectly. Ties pass a
rung that stops trials; trials of a sampler that improves pass any: the fields `most_...` assume that all trials pass
all rungs.
"""

import heapq
import itertools
import math
import random
import statistics
from bisect import insort
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from tune_dlrml.config import ResourcesConfig, SearchConfig
from tune_dlrml.domains import Domain, Range
from tune_dlrml.losses.base import searched_fields
from tune_dlrml.search.confirm.finalists import confirm_settings
from tune_dlrml.study.candidates import NoneYet, candidate_proposer
from tune_dlrml.study.halving import Promotions, needs_of, rung_steps, survives
from tune_dlrml.study.proposer import proposer_of
from tune_dlrml.training.measure import Measurement

SIMULATED = 300
"""Searches that are simulated; their middle 90 % is the range."""
POINTS = 65
"""Values of a range of batch sizes, evenly spaced on its own scale, that are averaged."""


@dataclass(frozen=True)
class Span:
    """Mean of the simulated searches, and the middle 90 % of them."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Taking:
    """Resource usage of a trial until it ends: optimizer steps, held-out evaluations, checkpoints, times issued."""

    steps: int
    evaluations: int
    checkpoints: int
    issued: int = 1


@dataclass(frozen=True)
class Cost:
    """Estimated resource usage of a search.

    Attributes:
        trials: All trials, the baseline included.
        full_steps: Full budget of a trial.
        rungs: Steps at which successive halving decides.
        measured: Measured usage of one worker.
        optimizer_steps: Of all trials together, as are the next two.
        evaluations: On the held-out pairs.
        checkpoints: Written.
        training_s: Time of the optimizer steps. Here and in the next two the times of groups that run at once add up.
        evaluations_s: Time of the evaluations, each shared by the workers of a group.
        checkpoints_s: Time of the checkpoints, written one after another.
        complete_trials: Trials that use up their budget.
        most_optimizer_steps: If no trial is stopped early.
        trained_tokens: Over all workers.
        reference_tokens: Tokens of the reference pass, which is made once.
        reference_s: Its time.
        wall_s: From the first load to the last trial's end.
        most_wall_s: If no trial is stopped early and every step takes as long as the slowest measured.
        cpu_hours: CPUs of all busy workers times hours.
        gpu_hours: GPUs of all busy workers times hours.
        memory_bytes: Peak of all workers that run at once.
        gpu_memory_bytes: The same of the GPUs' memory.
        disk_bytes: Largest size of the checkpoints that are on disk at the same time.
        confirmation: Upper estimate for `search.confirm`, with the held-out pairs of the search in place of a test
            set; None without it. The fields above do not include it.
        confirmation_races: Whether that is a race, which mostly ends before all of these trials are trained.
    """

    trials: int
    full_steps: int
    rungs: tuple[int, ...]
    measured: Measurement
    optimizer_steps: Span
    evaluations: Span
    checkpoints: Span
    training_s: Span
    evaluations_s: Span
    checkpoints_s: Span
    complete_trials: Span
    most_optimizer_steps: int
    trained_tokens: Span
    reference_tokens: int
    reference_s: float
    wall_s: Span
    most_wall_s: float
    cpu_hours: Span
    gpu_hours: Span
    memory_bytes: int
    gpu_memory_bytes: int
    disk_bytes: int
    confirmation: "Cost | None" = None
    confirmation_races: bool = False

    @property
    def step_s(self) -> tuple[float, float, float]:
        """Median, least and most of the measured optimizer steps."""
        steps = self.measured.step_s
        return statistics.median(steps), min(steps), max(steps)

    def as_json(self) -> dict[str, Any]:
        """The fields by their names, `step_s` among them."""
        return asdict(self) | {"step_s": dict(zip(("median", "low", "high"), self.step_s, strict=True))}


def estimate_cost(
    measured: Measurement, config: SearchConfig, full_steps: int, *, seed: int = 0, together: int | None = None
) -> Cost:
    """The cost of a search, estimated; equal arguments give equal estimates.

    Args:
        measured: Measured usage of one worker with the settings that the file gives outside the space.
        config: The search.
        full_steps: Full budget of a trial.
        seed: Of the simulated searches.
        together: So many trials begin once those before have ended, twice as many at first, as in a race; None where
            none waits for others.
    """
    scheduler, resources = config.search.scheduler, config.resources
    rungs, trials = rung_steps(scheduler, full_steps), number_of_trials(config)
    mean_batch, _ = relative_batch_sizes(config)
    reference_tokens = _reference_tokens(measured, config, full_steps)
    rates = _Rates(measured, resources, reference_tokens, together)
    simulated = [*_simulated(config, trials, len(rungs), measured.step_s, random.Random(seed))]
    save_steps, pauses = config.checkpoint.save_steps, scheduler is not None and scheduler.pauses
    searches = [
        (
            [replace(taking(end, rungs, full_steps, save_steps, pauses=pauses), issued=own) for end, own in one.ends],
            mean_batch * step_s,
        )
        for one, step_s in simulated
    ]

    def over(value: Callable[[Sequence[Taking], float], float]) -> Span:
        return _span([value(ends, step_s) for ends, step_s in searches])

    steps = over(lambda ends, _: sum(one.steps for one in ends))
    evaluations = over(lambda ends, _: sum(one.evaluations for one in ends))
    checkpoints = over(lambda ends, _: sum(one.checkpoints for one in ends))
    complete = over(lambda ends, _: sum(one.steps == full_steps for one in ends))
    at_once = resources.workers * resources.concurrent_trials
    paused = _span([float(one.paused) for one, _ in simulated])
    kept = complete.high + paused.high + resources.concurrent_trials * (config.checkpoint.save_total_limit + 1)
    hours = over(rates.worker_hours)
    tokens_per_step = measured.tokens_per_step * mean_batch * resources.workers
    return Cost(
        trials=trials,
        full_steps=full_steps,
        rungs=rungs,
        measured=measured,
        optimizer_steps=steps,
        evaluations=evaluations,
        checkpoints=checkpoints,
        training_s=over(lambda ends, step_s: step_s * sum(one.steps for one in ends)),
        evaluations_s=_times(evaluations, rates.evaluation_s),
        checkpoints_s=_times(checkpoints, measured.checkpoint_s),
        complete_trials=complete,
        most_optimizer_steps=trials * full_steps,
        trained_tokens=_times(steps, tokens_per_step),
        reference_tokens=reference_tokens,
        reference_s=rates.reference_s,
        wall_s=over(rates.wall_s),
        most_wall_s=rates.wall_s(
            [taking(len(rungs), rungs, full_steps, save_steps)] * trials, mean_batch * max(measured.step_s)
        ),
        cpu_hours=_times(hours, resources.cpus_per_worker),
        gpu_hours=_times(hours, resources.gpus_per_worker),
        memory_bytes=at_once * measured.memory_bytes,
        gpu_memory_bytes=at_once * measured.gpu_memory_bytes,
        disk_bytes=math.ceil(kept * measured.checkpoint_bytes),
        confirmation=None if config.search.confirm is None else _confirmation(measured, config, full_steps),
        confirmation_races=config.search.confirm is not None and config.search.confirm.adaptive,
    )


def _confirmation(measured: Measurement, config: SearchConfig, full_steps: int) -> Cost:
    confirm, again = config.search.confirm, config.model_copy(update={"search": confirm_settings(config)})
    assert confirm is not None
    return estimate_cost(measured, again, full_steps, together=confirm.top + 1 if confirm.adaptive else None)


@dataclass(frozen=True)
class _Rates:
    """Time of each part of a search, from the measured usage of one worker."""

    measured: Measurement
    resources: ResourcesConfig
    reference_tokens: int
    together: int | None = None

    @property
    def reference_s(self) -> float:
        """Time of the reference pass, which the workers share, as they share an evaluation."""
        return self.reference_tokens * self.measured.reference_s_per_token / self.resources.workers

    @property
    def evaluation_s(self) -> float:
        return self.measured.evaluation_s / self.resources.workers

    def trial_s(self, one: Taking, step_s: float) -> float:
        evaluations_s, checkpoints_s = self.evaluation_s, self.measured.checkpoint_s
        parts_s = one.steps * step_s, one.evaluations * evaluations_s, one.checkpoints * checkpoints_s
        return one.issued * self.measured.trial_s + sum(parts_s)

    def groups(self, ends: Sequence[Taking]) -> int:
        """Groups that are started, each of which loads; a promoted trial is issued again."""
        at_once, each = self.resources.concurrent_trials, self.resources.trials_per_group
        return at_once if each is None else max(at_once, math.ceil(sum(one.issued for one in ends) / each))

    def wall_s(self, ends: Sequence[Taking], step_s: float) -> float:
        loads = math.ceil(self.groups(ends) / self.resources.concurrent_trials)
        trials_s = [self.trial_s(one, step_s) for one in ends]
        each = self.together or max(1, len(ends))
        begins = [0, *range(2 * each, len(ends), each), len(ends)]
        rounds = (trials_s[begin:end] for begin, end in itertools.pairwise(begins))
        busy_s = sum(makespan(own, self.resources.concurrent_trials) for own in rounds)
        return loads * self.measured.load_s + self.reference_s + busy_s

    def worker_hours(self, ends: Sequence[Taking], step_s: float) -> float:
        loading_s = self.groups(ends) * self.measured.load_s
        busy_s = sum(self.trial_s(one, step_s) for one in ends) + loading_s + self.reference_s
        return self.resources.workers * busy_s / 3600


@dataclass(frozen=True)
class Halved:
    """What successive halving made of the trials of a simulated search.

    Attributes:
        ends: For each trial the number of rungs that it passed, and how often it was issued.
        paused: The most trials that were paused at the same time.
    """

    ends: list[tuple[int, int]]
    paused: int = 0


def _simulated(
    config: SearchConfig, trials: int, rungs: int, step_s: Sequence[float], rng: random.Random
) -> Iterator[tuple[Halved, float]]:
    """For each simulated search, what became of its trials and the time of an optimizer step."""
    scheduler, wanted = config.search.scheduler, max(needs.trials for needs in needs_of(config))
    for _ in range(SIMULATED):
        values = draw_values(trials, rungs, rng)
        if scheduler is None or not scheduler.pauses:
            factor = 2 if scheduler is None else scheduler.reduction_factor
            found = Halved([(passed, 1) for passed in rungs_passed(values, factor)])
        else:
            found = promoted(
                values,
                scheduler.reduction_factor,
                wanted=wanted,
                baseline=config.baseline_loss() is not None,
            )
        # The mean of a few measured steps is uncertain: each search resamples as many of them.
        yield found, statistics.fmean(rng.choices(step_s, k=len(step_s)))


def _reference_tokens(measured: Measurement, config: SearchConfig, full_steps: int) -> int:
    """Tokens of the held-out pairs and of those that the trials with the largest batch see."""
    pairs_per_step = config.training.pairs_per_step(config.resources.workers)
    _, largest_batch = relative_batch_sizes(config)
    seen = min(measured.train_pairs, math.ceil(full_steps * pairs_per_step * largest_batch))
    return measured.held_out_reference_tokens + round(seen * measured.reference_tokens_per_pair)


def draw_values(trials: int, rungs: int, rng: random.Random) -> list[list[float]]:
    """Values of the trials of one simulated search at each rung; see the module."""
    foretold = rng.random()
    shared, own = math.sqrt(foretold), math.sqrt(1 - foretold)
    qualities = [rng.gauss(0, 1) for _ in range(trials)]
    return [[shared * quality + own * rng.gauss(0, 1) for _ in range(rungs)] for quality in qualities]


def rungs_passed(values: Sequence[Sequence[float]], reduction_factor: int) -> list[int]:
    """How many rungs each trial passes, one trial after another; a larger value is better."""
    ends: list[int] = []
    recorded: list[list[float]] = []
    for own in values:
        recorded = recorded or [[] for _ in own]
        passed = 0
        while passed < len(own):
            insort(recorded[passed], own[passed])
            if not survives(own[passed], recorded[passed], reduction_factor, maximize=True):
                break
            passed += 1
        ends.append(passed)
    return ends


def promoted(values: Sequence[Sequence[float]], reduction_factor: int, *, wanted: int, baseline: bool) -> Halved:
    """How many rungs each trial passes where trials are paused, one trained after another; a larger value is better.

    Args:
        values: Of each trial at each rung.
        reduction_factor: One in so many is promoted.
        wanted: Complete trials that the search is for.
        baseline: Whether the first trial is one, which is never paused.
    """
    last = len(values[0]) if values else 0
    promotions = Promotions(last, reduction_factor, maximize=True, baseline=0 if baseline else None)
    passed, issued = [0] * len(values), [0] * len(values)
    begun = complete = most = 0

    def any_place() -> Collection[int]:
        return range(begun) if begun == len(values) and complete < wanted else ()

    while (number := promotions.next(any_place())) is not None or begun < len(values):
        if number is None:
            number, begun = begun, begun + 1
        else:
            passed[number] = promotions.paused.pop(number) + 1
        issued[number] += 1
        while passed[number] < last:
            rung = passed[number]
            if not promotions.arrive(number, rung, values[number][rung], any_place()):
                break
            passed[number] += 1
        complete += passed[number] == last and not (baseline and number == 0)
        most = max(most, len(promotions.paused))
    return Halved([*zip(passed, issued, strict=True)], most)


def taking(passed: int, rungs: Sequence[int], full_steps: int, save_steps: int, *, pauses: bool = False) -> Taking:
    """Usage of a trial that passes so many rungs; at the next one it is evaluated and pruned.

    Where trials are paused it leaves a checkpoint there, else none.
    """
    complete = passed == len(rungs)
    last = full_steps if complete else rungs[passed]
    saved = {*rungs[:passed], *range(save_steps, last, save_steps)} | ({last} if complete or pauses else set())
    return Taking(steps=last, evaluations=passed + 1, checkpoints=len(saved))


def makespan(seconds: Sequence[float], slots: int) -> float:
    """When the last of the trials ends, if each takes the first slot that is free."""
    free = [0.0] * slots
    for own in seconds:
        heapq.heapreplace(free, free[0] + own)
    return max(free)


def number_of_trials(config: SearchConfig) -> int:
    """Trials of a whole search, the baseline and every point of a grid included."""
    proposer = proposer_of(config) if config.discovery is None else candidate_proposer(config, NoneYet())
    return proposer.total([])


def relative_batch_sizes(config: SearchConfig) -> tuple[float, float]:
    """Mean and largest number of pairs in a step over the space, relative to the file's own; 1 where it is fixed."""
    searched, mean, largest = searched_fields(config.space.training), 1.0, 1.0
    for key in ("per_device_train_batch_size", "gradient_accumulation_steps"):
        if key in searched:
            values = [size / getattr(config.training, key) for size in _sizes(searched[key])]
            mean *= statistics.fmean(values)
            largest *= max(values)
    return mean, largest


def _sizes(domain: Domain) -> list[float]:
    if isinstance(domain, Range):
        domain = Range(kind=domain.kind, low=domain.low, high=domain.high, num=POINTS)
    return [float(value) for value in domain.grid() if value is not None]


def _span(values: Sequence[float]) -> Span:
    cuts = statistics.quantiles(values, n=20, method="inclusive")
    return Span(statistics.fmean(values), cuts[0], cuts[-1])


def _times(span: Span, factor: float) -> Span:
    return Span(span.mean * factor, span.low * factor, span.high * factor)
