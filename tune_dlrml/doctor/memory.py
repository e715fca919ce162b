"""What a rank of a search holds in memory, on which GPUs that fits, and for how long they are taken: from shapes alone.

Neither weights nor a GPU are needed: the model's config.json is enough.
"""

from dataclasses import asdict, dataclass
from typing import Any

from tune_dlrml.config import SearchConfig
from tune_dlrml.data import Section, TokenRows
from tune_dlrml.doctor.cost import number_of_trials
from tune_dlrml.doctor.finding import Finding
from tune_dlrml.errors import InputError
from tune_dlrml.models.division import refuse_undividable
from tune_dlrml.models.loading import load_shapes, parse_model_reference

GIB = 2**30
COUNTS = (1, 2, 4, 8)
"""Ranks, a GPU each, that are looked at."""
CONTEXT = GIB // 2
"""Bytes of a GPU that CUDA and its libraries take before there is a tensor."""
USED = 0.95
"""Share of the rest that can be used: the allocator leaves gaps."""
SHARE = 207 / 989
"""Of the matrix rate of a GPU's data sheet: LoRA of a 7B on an H200, four pairs at a time (tests/gpu/README.md)."""
LONGEST = 1024
"""Tokens of a sequence where neither rows nor `training.max_length` say."""
PER_PAIRS = 1000
"""Pairs that GPU-hours are told for where nobody knows how many there are."""


@dataclass(frozen=True)
class Gpu:
    """A kind of GPU.

    Attributes:
        name: As people call it.
        memory: Bytes that torch sees.
        flops: FLOP/s of dense bfloat16 products by its data sheet.
    """

    name: str
    memory: int
    flops: float

    @property
    def free(self) -> int:
        """Bytes before there is a tensor."""
        return self.memory - CONTEXT


GPUS = {
    "24 GB": Gpu("RTX 4090", round(23.6 * GIB), 165e12),
    "40 GB": Gpu("A100", round(39.4 * GIB), 312e12),
    "80 GB": Gpu("H100", round(79.2 * GIB), 989e12),
    "141 GB": Gpu("H200", round(139.8 * GIB), 989e12),
}


@dataclass(frozen=True)
class Placement:
    """A search on so many GPUs of a kind, a rank each.

    Attributes:
        gpu: Its memory, as it is sold.
        ranks: How many.
        sharded: Whether they hold the model together.
        checkpointing: Whether layers are computed twice.
        resting: Bytes of a rank between two steps.
        peak: Bytes of a rank at its peak.
        fits: Whether that is there.
        gpu_hours: Of all trials, if none is stopped early, or of a thousand pairs.
    """

    gpu: str
    ranks: int
    sharded: bool
    checkpointing: bool
    resting: int
    peak: int
    fits: bool
    gpu_hours: float


@dataclass(frozen=True)
class MemoryEstimate:
    """What a search needs.

    Attributes:
        weights: Numbers of the model.
        trained: Numbers that a trial trains.
        batch: The micro-batch that it was computed for, in tokens.
        rank: How the ranks of this search train.
        own: What one of them holds.
        placements: On which GPUs it would fit; none where it asks for none.
        pairs: How many all trials train on together; None where nobody knows.
        assumed: What had to be assumed, a sentence each.
    """

    weights: int
    trained: int
    batch: Any
    rank: Any
    own: Any
    placements: tuple[Placement, ...]
    pairs: float | None
    assumed: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """The fields by their names, and the sums of `own`."""
        own = {"resting": self.own.resting, "peak": self.own.peak, "peak_moment": self.own.peak_moment}
        return asdict(self) | {"own": asdict(self.own) | own}


def examine_memory(config: SearchConfig, train: Section | None) -> Finding:
    """What a rank of this search holds, from the model's config alone; a warning where that cannot be told.

    Args:
        config: The search.
        train: Its training rows; None where they cannot be had.
    """
    try:
        estimate = estimate_memory(config, train)
    except InputError as error:
        return Finding("memory", "warning", f"not computed: {error}")
    own, rank = estimate.own, estimate.rank
    pieces = ", ".join(f"{name} {size / GIB:.3g}" for name, size in own.moments[own.peak_moment].items())
    text = (
        f"each of {rank.ranks} rank(s) holds {own.resting / GIB:.3g} GiB at rest and {own.peak / GIB:.3g} GiB at its "
        f"peak ({own.peak_moment}: {pieces})"
    )
    here = [placement for placement in estimate.placements if placement.ranks == rank.ranks]
    if here and not any(placement.fits for placement in here):
        return Finding("memory", "warning", f"{text}, which no GPU of {here[-1].gpu} has", memory=estimate)
    return Finding("memory", "ok", text, memory=estimate)


def estimate_memory(config: SearchConfig, train: Section | None) -> MemoryEstimate:
    """What a search with the settings that its file gives outside the space needs.

    Args:
        config: The search.
        train: Its training rows, with their tokens where there is a tokenizer; None where they cannot be had.

    Raises:
        InputError: The model's config cannot be had, or the model cannot be run on shapes alone.
    """
    from tune_dlrml.training.memory.plan import MemoryPlan

    model = load_shapes(parse_model_reference(config.model))
    largest, mean, assumed = _micro_batches(config, model, train)
    plan = MemoryPlan(model, config.training, largest, with_reference=config.needs_reference())
    pairs = _pairs(config, train)
    if not config.resources.gpus_per_worker:
        rank = _rank_of_cpus(config)
        return MemoryEstimate(plan.weights, plan.trained, largest, rank, plan.on(rank), (), pairs, (assumed,))
    places = _Places(config, model, plan, mean, PER_PAIRS if pairs is None else pairs)
    workers = config.resources.workers
    own = next((name for name in GPUS if places.at(name, workers)[0].fits), [*GPUS][-1])
    _, rank, held = places.at(own, workers)
    placements = tuple(places.at(name, ranks)[0] for name in GPUS for ranks in sorted({*COUNTS, workers}))
    rate = f"{SHARE:.0%} of the bfloat16 rate of a GPU's data sheet, as measured for LoRA of a 7B on an H200"
    return MemoryEstimate(plan.weights, plan.trained, largest, rank, held, placements, pairs, (assumed, rate))


def _micro_batches(config: SearchConfig, model: Any, train: Section | None) -> tuple[Any, Any, str]:
    """The largest micro-batch, the mean one, and what they were taken from."""
    from tune_dlrml.training.memory.lengths import assumed_micro_batch, micro_batches

    training = config.training
    if train is not None and train.tokens:
        largest, mean = micro_batches(model, training, TokenRows.of(train.tokens))
        told = f"all pairs of a micro-batch are as long as the longest ({largest.longest} tokens) at the peak"
        return largest, mean, told
    longest = training.max_length or LONGEST
    batch = assumed_micro_batch(training, longest)
    return batch, batch, f"pairs of 2 x {longest} tokens, half of them the answers, since no tokens are at hand"


def _pairs(config: SearchConfig, train: Section | None) -> float | None:
    """Pairs that all trials train on together, if none is stopped early."""
    training, workers = config.training, config.resources.workers
    if training.max_steps is None and train is None:
        return None
    steps = training.steps(0 if train is None else len(train.pairs), workers)
    per_step = training.pairs_per_step(workers)
    return float(number_of_trials(config) * steps * per_step)


def _rank_of_cpus(config: SearchConfig) -> Any:
    from tune_dlrml.training.memory.plan import Rank

    workers, fsdp = config.resources.workers, config.resources.fsdp
    return Rank(workers, fsdp is True, config.training.gradient_checkpointing is True, "cpu")


@dataclass(frozen=True)
class _Places:
    """Where a search could run."""

    config: SearchConfig
    model: Any
    plan: Any
    mean: Any
    pairs: float

    def at(self, name: str, ranks: int) -> tuple[Placement, Any, Any]:
        """So many GPUs of a kind, how their ranks train, and what one of them holds."""
        from tune_dlrml.training.memory.plan import Rank
        from tune_dlrml.training.memory.work import pair_flops

        gpu, config, plan = GPUS[name], self.config, self.plan
        free = round(gpu.free * min(1.0, config.resources.gpus_per_worker))
        sharded = _shards(config, plan, self.model, ranks, free)
        rank = Rank(ranks, sharded, plan.checkpoints(free, ranks if sharded else 1))
        held = plan.on(rank)
        flops = pair_flops(self.model, config.training, self.mean, checkpointing=rank.checkpointing)
        hours = self.pairs * flops / (SHARE * gpu.flops) / 3600
        placement = Placement(
            name, ranks, sharded, rank.checkpointing, held.resting, held.peak, held.peak <= USED * free, hours
        )
        return placement, rank, held


def _shards(config: SearchConfig, plan: Any, model: Any, ranks: int, free: int) -> bool:
    """As `training.sharding.choice` has it; a model that cannot be divided is whole on every rank."""
    from tune_dlrml.training.sharding.choice import is_too_large

    training, fsdp = config.training, config.resources.fsdp
    wanted = is_too_large(sum(plan.at_rest().values()), free) if fsdp == "auto" else fsdp
    if ranks == 1 or not wanted or training.undividable() is not None:
        return False
    try:
        refuse_undividable(model, ranks, all_weights=training.lora is None)
    except InputError:
        return False
    return True
