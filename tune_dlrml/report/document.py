"""All numbers of a report as one JSON document; the page shows the same."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from tune_dlrml.report.arms import Arm
from tune_dlrml.report.discovered import story
from tune_dlrml.report.diverging import splits
from tune_dlrml.report.ranking import ranking, verdict
from tune_dlrml.report.reading import SearchData
from tune_dlrml.report.spending import by_end, soundness, stages
from tune_dlrml.search.confirm.verdicts import Confirmation


def document(data: SearchData, confirmation: Confirmation | None, trained: Sequence[Arm]) -> dict[str, Any]:
    """The report's numbers; every one is finite or null."""
    confirmed = () if confirmation is None else confirmation.finalists
    ranked, found = ranking(data), story(data, confirmed)
    config = data.config
    return {
        "name": config.name,
        "model": config.model,
        "data": config.dataset.references(),
        "data_hash": dict(data.data_hash),
        "code": dict(data.code),
        "read_at": data.read_at,
        "metric": data.metric,
        "mode": config.search.mode,
        "full_steps": data.full_steps,
        "rungs": list(data.rungs),
        "verdict": asdict(verdict(data, ranked, confirmed)),
        "confirmed": [one.as_json() for one in confirmed],
        "race": None if confirmation is None or not confirmation.is_race else confirmation.runs_as_json(),
        "caveats": [] if confirmation is None else list(confirmation.caveats()),
        "confirming": [asdict(arm) for arm in trained],
        "ranking": [asdict(line) for line in ranked],
        "losses": [asdict(loss) for loss in soundness(data)],
        "diverged": [asdict(split) | {"sentence": split.sentence} for split in splits(data)],
        "pareto": [
            {"trial": trial.number, "kl": trial.last["eval_kl"], "value": trial.row.value}
            for trial in map(data.trial, data.front)
            if trial is not None
        ],
        "importance": None if data.importance is None else asdict(data.importance),
        "budget": {
            "by_end": {end: asdict(spent) for end, spent in by_end(data).items()},
            "by_rung": [asdict(stage) for stage in stages(data)],
        },
        "usage": data.usage.as_json(),
        "discovery": None if found is None else found.as_json(),
    }
