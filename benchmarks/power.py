"""Whether differences of the size that `doctor` states are shown as often as it says, which is four times of five.

Run: PYTHONPATH=tests python -m benchmarks.power [--results FOLDER] [--seeds 40]

Simulated: outcomes drawn from the model of tune_dlrml/search/confirm/power.py, 2,000 confirmations for each of many
plans and kinds of noise, each with a true difference of the stated size; the share that the confirmation's own test
(`crossed_difference`, the first step of Holm's) calls better.

On the toy: the outcomes are those of real trainings, DPO and dLRML under 40 seeds on 512 held-out pairs. A confirmation
draws seeds and pairs of them without replacement; its outcomes are shifted so that the true difference, the mean over
all seeds and pairs, is of the stated size. The size is stated from the noise of all trainings, and, as
`doctor --measure` does, from two seeds: then each confirmation has the size that two other seeds, drawn anew, state.
What is trained is kept in power-toy.jsonl in the folder, where a further run goes on.
"""

import argparse
import json
import math
from dataclasses import asdict
from pathlib import Path

import numpy as np
import toy_training
from numpy.typing import NDArray

from benchmarks.objectives import of_toy, read, write_noisy
from benchmarks.results import RESULTS, Row, header, record
from tune_dlrml.data import select_pairs
from tune_dlrml.metrics import METRICS
from tune_dlrml.search.confirm.paired import POWER, crossed_difference, holm, verdict
from tune_dlrml.search.confirm.power import Noise, confirmed
from tune_dlrml.search.validity import reader_of_model
from tune_dlrml.training.resident import Resident

COMPARISONS = 2000
TOLERANCE = 0.05
PLANS = ((5, 64, 1), (5, 64, 3), (3, 128, 2), (5, 500, 7), (10, 64, 3))
"""Seeds, held-out pairs, finalists."""
NOISES = (
    Noise(seed=0.0005, pair=0.1, rest=0.2),
    Noise(seed=0.002, pair=0.05, rest=0.3),
    Noise(seed=0.0, pair=0.05, rest=0.3),
    Noise(seed=0.01, pair=0.02, rest=0.2),
    Noise(seed=0.0, pair=0.25, rest=0.0),
)
LOSSES = {"dpo": {"name": "dpo", "beta": 0.1}, "dlrml": {"name": "dlrml", "beta_kl": 0.1, "c": 4}}
HELD_OUT = 512
ON_TOY = (5, 64, 3)
Values = NDArray[np.float64]


def is_shown(outcomes: Values, finalists: int) -> bool:
    """Whether a finalist with these differences of seeds (rows) and pairs is better, the others being equal."""
    found = crossed_difference(outcomes)
    return verdict(found.mean, holm([found.p, *[1.0] * (finalists - 1)])[0], maximize=True) == "better"


def simulated(noise: Noise, seeds: int, pairs: int, finalists: int) -> float:
    rng = np.random.default_rng(0)
    difference = confirmed(noise, seeds=seeds, pairs=pairs, finalists=finalists)
    shown = 0
    for _ in range(COMPARISONS):
        of_seeds = rng.normal(0, math.sqrt(noise.seed), (seeds, 1))
        of_pairs = rng.normal(0, math.sqrt(noise.pair), (1, pairs))
        rest = rng.normal(0, math.sqrt(noise.rest), (seeds, pairs))
        shown += is_shown(difference + of_seeds + of_pairs + rest, finalists)
    return shown / COMPARISONS


def trained(lines: Path, seeds: int) -> Values:
    """Differences of accuracy, shape (seeds, HELD_OUT), of trainings of the toy; the file keeps their margins."""
    known = {(each["loss"], each["seed"]): each["margins"] for each in read(lines)}
    missing = [(name, seed) for seed in range(seeds) for name in LOSSES if (name, seed) not in known]
    if missing:
        folder = lines.parent / "power-toy"
        folder.mkdir(parents=True, exist_ok=True)
        config = of_toy(folder)
        held_out = str(write_noisy(folder / "held_out.jsonl", HELD_OUT, 1))
        dataset = config.dataset.model_copy(update={"eval": held_out})
        pairs = select_pairs(dataset, config.training, lambda: reader_of_model(config)).pairs()
        resident = Resident.load(config.model, pairs, config.training)
        budget = toy_training.plan(config.training.steps(len(pairs.train), workers=1))
        for name, seed in missing:
            toy_training.run(resident, LOSSES[name], config.training.at({"seed": seed}), budget)
            known[name, seed] = list(resident.held_out.margins)
            with lines.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"loss": name, "seed": seed, "margins": known[name, seed]}) + "\n")
    of_pair = METRICS["eval_accuracy"].of_pair
    assert of_pair is not None
    dpo, dlrml = (np.array([[of_pair(x) for x in known[name, seed]] for seed in range(seeds)]) for name in LOSSES)
    return dlrml - dpo


def on_toy(differences: Values, *, from_two: bool) -> tuple[float, float]:
    """The share of the confirmations that show a difference of the stated size, and the mean of that size."""
    rng = np.random.default_rng(1)
    seeds, pairs, finalists = ON_TOY
    centred = differences - differences.mean()
    size = confirmed(Noise.of(differences), seeds=seeds, pairs=pairs, finalists=finalists)
    shown, sizes = 0, []
    for _ in range(COMPARISONS):
        order, columns = rng.permutation(len(centred)), rng.permutation(centred.shape[1])[:pairs]
        if from_two:
            noise = Noise.of(centred[np.ix_(order[-2:], columns)])
            size = confirmed(noise, seeds=seeds, pairs=pairs, finalists=finalists)
        sizes.append(size)
        shown += is_shown(size + centred[np.ix_(order[:seeds], columns)], finalists)
    return shown / COMPARISONS, float(np.mean(sizes))


def row(name: str, share: float) -> Row:
    """The share of the differences that were shown, and how far that is from the promised one."""
    return Row.judged(
        name,
        ours=share,
        other=POWER,
        ratio=max(abs(share - POWER), 1e-3),
        goal=TOLERANCE,
        better="lower",
        unit="share of confirmations",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--seeds", type=int, default=40, help="of the trainings on the toy")
    arguments = parser.parse_args()
    measured_on = header(dtype="float32", threads=1)
    arguments.results.mkdir(parents=True, exist_ok=True)
    shares = {f"{noise}, {plan}": simulated(noise, *plan) for noise in NOISES for plan in PLANS}
    furthest = max(shares.values(), key=lambda share: abs(share - POWER))
    differences = trained((arguments.results / "power-toy.jsonl").resolve(), arguments.seeds)
    known, size = on_toy(differences, from_two=False)
    stated, mean_size = on_toy(differences, from_two=True)
    raw = {
        "simulated": shares,
        "toy": {"noise": asdict(Noise.of(differences)), "size": size, "shown": known},
        "toy, from two seeds": {"mean size": mean_size, "shown": stated},
    }
    rows = [
        row("power", furthest),
        row("power_toy", known),
        row("power_toy_two_seeds", stated),
    ]
    record("power", rows, raw, measured_on=measured_on, folder=arguments.results)


if __name__ == "__main__":
    main()
