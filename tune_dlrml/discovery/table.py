"""The proposals of a search as one table, for those who look at them beside its trials."""

from collections.abc import Mapping, Sequence
from typing import Any

from tune_dlrml.discovery.archive import GEOMETRY, ProposalRecord

TABLE = "proposals.json"
"""Its name in MLflow."""
COLUMNS = [
    *("proposal", "loss", "proposer", "stage", "reason", "shown", "refused ones shown"),
    *GEOMETRY,
    *("best trial", "value", "standard error", "setting", "KL", "ratings", "trials"),
    *("requests", "tokens", "seconds", "reasoning", "code"),
]


def proposals_table(records: Sequence[ProposalRecord]) -> dict[str, Any]:
    """All proposals so far, as MLflow has a table: `columns`, and `data` with a row each."""
    return {"columns": COLUMNS, "data": [_row(record) for record in records]}


def _row(record: ProposalRecord) -> list[Any]:
    scores = record.scores
    return [
        record.number,
        record.label,
        record.proposer,
        record.stage,
        record.reason,
        ", ".join(record.parents),
        ", ".join(map(str, record.refusals)),
        *(record.found.get(name) for name in GEOMETRY),
        *(scores.get(name) for name in ("trial", "value", "error")),
        _listed(scores.get("settings")),
        scores.get("context", {}).get("eval_kl"),
        _listed(scores.get("judged")),
        _listed(scores.get("states")),
        record.requests,
        record.tokens,
        record.seconds,
        record.reasoning,
        record.code,
    ]


def _listed(values: Mapping[str, Any] | None) -> str:
    known = {} if values is None else values
    shown = {key: f"{value:.4g}" if isinstance(value, float) else value for key, value in known.items()}
    return ", ".join(f"{key} {value}" for key, value in shown.items())
