"""The trials that are trained again after a search, and their seeds. Imports no ray, since reports read it, too."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tune_dlrml.config import ConfirmConfig, SearchConfig, SearchSettings
from tune_dlrml.losses.registry import baseline, is_baseline
from tune_dlrml.space import TrialSpec
from tune_dlrml.study.history import TrialRow, ranked

FINALIST, SEED = "finalist", "training.seed"
"""Parameters of a confirming trial: which trial of the search it repeats, and under which seed."""
DEFAULT_DPO = -1
"""Number of a DPO that was not a trial of the search."""


@dataclass(frozen=True)
class Finalist:
    """A setting that is trained again.

    Attributes:
        trial: Number of the trial in the search; `DEFAULT_DPO` if it was none.
        spec: The setting.
    """

    trial: int
    spec: TrialSpec

    @property
    def label(self) -> str:
        """Branch of its confirming trials."""
        return "default DPO" if self.trial == DEFAULT_DPO else f"trial {self.trial}"

    def again(self, number: int, seed: int) -> TrialSpec:
        """The same setting under another seed, as a trial of the confirming study."""
        shared = {key: value for key, value in self.spec.params.items() if key.startswith("training.")}
        return TrialSpec(
            number=number,
            branch=self.label,
            loss=self.spec.loss,
            training=self.spec.training.model_copy(update={"seed": seed, "data_seed": None, "warm_up": None}),
            params={**shared, SEED: seed, FINALIST: self.trial},
        )


def finalists(config: SearchConfig, rows: Sequence[TrialRow]) -> tuple[list[Finalist], Finalist] | None:
    """The settings that are confirmed, the best first, and the baseline, which is none of them.

    The baseline is the best plain DPO of the search, so that a candidate has to beat DPO at its own best; without a
    complete one it is DPO as it is by default. None where nothing is complete, or nothing is to be confirmed.
    """
    confirm = config.search.confirm
    best_first = ranked(rows, maximize=config.search.maximize)
    of_search = [Finalist(row.number, row.spec) for row in best_first if row.spec is not None]
    if confirm is None or not of_search:
        return None
    loss = baseline()
    default = TrialSpec(number=0, branch=loss.name, loss=loss, training=config.training, params={})
    plain = (each for each in of_search if is_baseline(each.spec.loss))
    compared = next(plain, Finalist(DEFAULT_DPO, default))
    chosen = _at_most(confirm.per_loss, of_search)[: confirm.top]
    return [each for each in chosen if each.trial != compared.trial], compared


def _at_most(per_loss: int | None, best_first: Sequence[Finalist]) -> list[Finalist]:
    """Those that fewer than `per_loss` better ones of the same branch precede; all of them without a limit."""
    seen: Counter[str] = Counter()
    found = []
    for each in best_first:
        seen[each.spec.branch] += 1
        if per_loss is None or seen[each.spec.branch] <= per_loss:
            found.append(each)
    return found


def most_seeds(confirm: ConfirmConfig) -> int:
    """Most seeds of a finalist: in a race a fifth more, which make up for what its looks and its drops cost."""
    return confirm.seeds + (math.ceil(confirm.seeds / 5) if confirm.adaptive else 0)


def confirm_settings(config: SearchConfig) -> SearchSettings:
    """Search settings of the confirming trials: as many as there can be, without a sampler and without pruning."""
    confirm = config.search.confirm
    assert confirm is not None
    return SearchSettings(
        num_trials=(confirm.top + 1) * most_seeds(confirm),
        metric=config.search.metric,
        mode=config.search.mode,
        sampler="random",
        seed=config.search.seed,
        max_failures=config.search.max_failures,
        study_url=config.search.study_url,
        scheduler=None,
        baseline=None,
    )


def seeds_of(config: SearchConfig) -> list[int]:
    """Seeds that no trial of the search had, the same for every finalist, as many as there can be."""
    assert config.search.confirm is not None
    return [(config.training.seed + 1 + index) % 2**32 for index in range(most_seeds(config.search.confirm))]


def identity(spec: TrialSpec) -> tuple[Any, Any]:
    """Identity of a confirming trial, independent of its number: the trial that it repeats, and its seed."""
    return spec.params[FINALIST], spec.params[SEED]
