"""Confirmation as a race against the fixed scheme, by simulation: error, power and runs on planted cases.

Run: PYTHONPATH=tests python -m benchmarks.race [--replications 2000] [--seeds 5]

Both sides test the same trainings: those of every finalist and of DPO under seeds of which the fixed scheme uses the
first `seeds`, and the race as many as it needs. A training is its outcome, right or wrong, on every held-out pair. A
pair is right where the sum of these is above 0, all of them normal:

- the quality of the setting, such that its expected accuracy is 0.6 plus the planted effect;
- the pair, and the pair under that setting: samples that all seeds share;
- the seed, which moves all settings alike, and the seed under that setting;
- the rest, which varies from training to training and pair to pair.

Their variances are such that, with 128 held-out pairs, accuracy varies by 0.05 from seed to seed, and so does the
difference of two settings under the same seeds: what real searches show (docs/results.md). The cases, their effects and
their numbers of pairs were fixed before anything was measured.

A planted effect is told where the verdict has its sign. The power of a case is the mean share of effects that are told,
its error the share of replications in which a finalist without an effect is told, or one with the wrong sign. The rows:

- `race`: runs that the race needs, as a share of those of the fixed scheme, mean over the cases;
- `race_equal_power`: as a share of those of a fixed scheme with as many seeds as give it the race's power, which may
  lie between two whole numbers; mean over the cases with an effect;
- `race_power`: mean power of the race over that of the fixed scheme;
- `race_error`: the largest error of a case, as a share of the 5 % that are promised.
"""

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import ndtri

from benchmarks.results import RESULTS, Row, header, record
from tune_dlrml.config import ConfirmConfig
from tune_dlrml.search.confirm.finalists import most_seeds
from tune_dlrml.search.confirm.paired import LEVEL, Difference, crossed_variances, holm, p_value
from tune_dlrml.search.confirm.race import Standing, after_round

GOAL = 0.5
BASE = 0.6
"""Expected accuracy of DPO."""
PAIR, PAIR_OF_SETTING, SEED, SEED_OF_SETTING, REST = 1.0, 0.55, 0.105, 0.075, 0.65
"""Standard deviations of the latent parts."""
MOST = 14
"""Seeds that are simulated."""
CHUNK = 100


@dataclass(frozen=True)
class Case:
    """Planted effects of the finalists on accuracy, held-out pairs, and how much noisier the last finalist is."""

    name: str
    effects: tuple[float, ...]
    pairs: int = 128
    noise: float = 1.0

    @property
    def planted(self) -> np.ndarray:
        return np.array(self.effects)


CASES = [
    *(Case(f"none of {count}, {pairs} pairs", (0.0,) * count, pairs) for pairs in (64, 128, 500) for count in (3, 6)),
    Case("none of 3, one four times as noisy", (0.0,) * 3, noise=4.0),
    *(Case(f"one of 3 by {effect:.2f}", (effect, 0.0, 0.0)) for effect in (0.05, 0.10, 0.15)),
    *(Case(f"one of 3 by 0.10, {pairs} pairs", (0.10, 0.0, 0.0), pairs) for pairs in (64, 500)),
    *(Case(f"one of 6 by {effect:.2f}", (effect, *(0.0,) * 5)) for effect in (0.05, 0.10, 0.15)),
    Case("one of 12 by 0.15", (0.15, *(0.0,) * 11)),
    Case("three of 6", (0.15, 0.10, 0.05, 0.0, 0.0, 0.0)),
    Case("all of 3 by 0.10", (0.10,) * 3),
    Case("one of 6 better, three worse", (0.10, 0.0, 0.0, -0.05, -0.10, -0.15)),
    Case("one of 3 worse by 0.15 and four times as noisy", (0.0, 0.0, -0.15), noise=4.0),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replications", type=int, default=2000, help="of each case")
    parser.add_argument("--seeds", type=int, default=5, help="of the fixed scheme, those of `search.confirm`")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    measured_on = header(dtype="float64", threads=1)
    found = [measured(case, arguments.seeds, arguments.replications) for case in CASES]
    for line in found:
        print(in_words(line), flush=True)
    raw = {"replications": arguments.replications, "seeds": arguments.seeds, "cases": found}
    record("race", rows(found, arguments.seeds), raw, measured_on=measured_on, folder=arguments.results)


def rows(found: Sequence[dict[str, Any]], seeds: int) -> list[Row]:
    """The figures."""
    planted = [line for line in found if line["power"] is not None]

    def mean(key: str, lines: Sequence[dict[str, Any]] = found) -> float:
        return statistics.fmean(line[key] for line in lines)

    equal = statistics.fmean(line["runs"] / line["equal_power_runs"] for line in planted)
    shares = statistics.fmean(line["runs"] / line["fixed_runs"] for line in found)
    worst = max(found, key=lambda line: line["error"])
    return [
        Row.judged(
            "race", ours=mean("runs"), other=mean("fixed_runs"), ratio=shares, goal=GOAL, unit="runs", better="lower"
        ),
        Row.judged(
            "race_equal_power",
            ours=mean("runs", planted),
            other=mean("equal_power_runs", planted),
            ratio=equal,
            goal=GOAL,
            unit="runs",
            better="lower",
        ),
        Row.judged(
            "race_power",
            ours=mean("power", planted),
            other=mean("fixed_power", planted),
            ratio=mean("power", planted) / mean("fixed_power", planted),
            goal=1.0,
            unit="share told",
        ),
        Row.judged("race_error", ours=worst["error"], other=LEVEL, goal=1.0, unit="share", better="lower"),
    ]


def measured(case: Case, seeds: int, replications: int) -> dict[str, Any]:
    """Error, power and runs of both sides on one case."""
    rng = np.random.default_rng([len(case.effects), case.pairs, round(1000 * sum(case.effects) + case.noise) + 1000])
    found: list[tuple[np.ndarray, int]] = []
    fixed: list[np.ndarray] = []
    spreads: list[tuple[float, float]] = []
    cap = most_seeds(ConfirmConfig(seeds=seeds))
    for begin in range(0, replications, CHUNK):
        outcomes = trainings(rng, min(CHUNK, replications - begin), case)
        table = outcomes[:, 1:] - outcomes[:, :1]
        accuracy, between = outcomes[:, 0].mean(-1), table[:, 0].mean(-1)
        spreads.append((float(accuracy.std(-1, ddof=1).mean()), float(between.std(-1, ddof=1).mean())))
        differences = of_every_seed(table)
        found += [raced([[own[count] for own in one] for count in range(cap - 1)], cap) for one in differences]
        fixed.append(
            np.array([[told([own[count] for own in one]) for one in differences] for count in range(MOST - 1)])
        )
    verdicts, runs = np.array([verdict for verdict, _ in found]), np.array([own for _, own in found])
    of_fixed = np.concatenate(fixed, axis=1)  # by number of seeds, from 2, then replication and finalist
    planted, arms = case.planted, len(case.effects) + 1
    powers = [power_of(each, planted) for each in of_fixed]
    power = power_of(verdicts, planted)
    needed = None if power is None else float(np.interp(power, powers, np.arange(2, MOST + 1)))  # type: ignore[arg-type]
    return {
        "case": case.name,
        "accuracy_sd": round(statistics.fmean(one for one, _ in spreads), 4),
        "difference_sd": round(statistics.fmean(other for _, other in spreads), 4),
        "error": error_of(verdicts, planted),
        "fixed_error": error_of(of_fixed[seeds - 2], planted),
        "power": power,
        "fixed_power": powers[seeds - 2],
        "told": [float((verdicts[:, place] == np.sign(effect)).mean()) for place, effect in enumerate(planted)],
        "fixed_told": [
            float((of_fixed[seeds - 2][:, place] == np.sign(effect)).mean()) for place, effect in enumerate(planted)
        ],
        "runs": float(runs.mean()),
        "most_runs": int(runs.max()),
        "fixed_runs": arms * seeds,
        "equal_power_seeds": needed,
        "equal_power_runs": None if needed is None else arms * needed,
    }


def trainings(rng: np.random.Generator, replications: int, case: Case) -> np.ndarray:
    """Whether each held-out pair is right, shape (replications, DPO and finalists, seeds, pairs)."""
    arms, pairs = len(case.effects) + 1, case.pairs

    def draw(deviation: float, *shape: int) -> np.ndarray:
        return deviation * rng.standard_normal((replications, *shape), dtype=np.float32)

    spread = np.sqrt(sum(part**2 for part in (PAIR, PAIR_OF_SETTING, SEED, SEED_OF_SETTING, REST)))
    own = np.full(arms, SEED_OF_SETTING)
    own[-1] *= case.noise
    spreads = np.sqrt(spread**2 - SEED_OF_SETTING**2 + own**2)
    quality = spreads * ndtri(BASE + np.array([0.0, *case.effects]))
    of_seeds = draw(SEED, 1, MOST, 1) + draw(1.0, arms, MOST, 1) * own[:, None, None].astype(np.float32)
    of_pairs = draw(PAIR, 1, 1, pairs) + draw(PAIR_OF_SETTING, arms, 1, pairs)
    total = draw(REST, arms, MOST, pairs) + of_pairs + of_seeds + quality[:, None, None].astype(np.float32)
    return (total > 0).astype(np.float32)


def of_every_seed(table: np.ndarray) -> list[list[list[Difference]]]:
    """The difference of each replication and finalist from DPO after 2, 3, ... seeds."""
    replications, finalists, seeds, pairs = table.shape
    found: list[list[list[Difference]]] = [[[] for _ in range(finalists)] for _ in range(replications)]
    for count in range(2, seeds + 1):
        mean, by_seed, by_item = crossed_variances(table[:, :, :count].astype(float))
        p = p_value(mean, count, pairs, by_seed, by_item)
        for place, own in np.ndenumerate(mean):
            kept = [float(each[place]) for each in (p, by_seed, by_item)]
            found[place[0]][place[1]].append(Difference(count, float(own), 0.0, 0.0, kept[0], pairs, *kept[1:]))
    return found


def raced(looks: Sequence[Sequence[Difference]], cap: int) -> tuple[list[float], int]:
    """The signs of the verdicts of one race, and its runs; `looks` are the finalists' differences from two seeds on."""
    standings, runs = [Standing() for _ in looks[0]], 0
    for rounds, new in enumerate(looks, start=2):
        racing = [own.end == "open" for own in standings]
        if not any(racing):
            break
        runs += (sum(racing) + 1) * (2 if rounds == 2 else 1)
        differences = [
            now if goes_on else own.difference for now, own, goes_on in zip(new, standings, racing, strict=True)
        ]
        standings = after_round(standings, differences, rounds=rounds, cap=cap)
    return [float(np.sign(own.sign)) if own.end == "settled" else 0.0 for own in standings], runs


def told(differences: Sequence[Difference]) -> list[float]:
    """The signs of the verdicts of the fixed scheme."""
    raised = holm([own.p for own in differences])
    return [float(np.sign(own.mean)) if p < LEVEL else 0.0 for own, p in zip(differences, raised, strict=True)]


def power_of(verdicts: np.ndarray, planted: np.ndarray) -> float | None:
    right = (verdicts == np.sign(planted))[:, planted != 0]
    return float(right.mean()) if right.size else None


def error_of(verdicts: np.ndarray, planted: np.ndarray) -> float:
    return float(((verdicts != 0) & (verdicts != np.sign(planted))).any(axis=1).mean())


def in_words(line: dict[str, Any]) -> str:
    """One case."""
    power = "" if line["power"] is None else f"power {line['power']:.3f} against {line['fixed_power']:.3f}, "
    equal = "" if line["power"] is None else f", {line['runs'] / line['equal_power_runs']:.0%} at equal power"
    return (
        f"{line['case']}: error {line['error']:.4f} against {line['fixed_error']:.4f}, {power}"
        f"runs {line['runs']:.1f} of {line['fixed_runs']} ({line['runs'] / line['fixed_runs']:.0%}{equal}); "
        f"sd over seeds {line['accuracy_sd']:.3f}, of a difference {line['difference_sd']:.3f}"
    )


if __name__ == "__main__":
    main()
