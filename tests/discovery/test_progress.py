"""The line of `status` on a discovery: proposals by stage, the caps, and what is waited for."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from made_search import discovery_search
from typer.testing import CliRunner

from tune_dlrml.cli.main import app
from tune_dlrml.config import SearchConfig, to_yaml
from tune_dlrml.discovery.archive import PROPOSALS, Archive, ProposalRecord
from tune_dlrml.losses.proposed.config import ProposedLoss
from tune_dlrml.records import State
from tune_dlrml.search.discovery_progress import progress
from tune_dlrml.search.result import SearchPlace
from tune_dlrml.space import TrialSpec
from tune_dlrml.study.candidates import candidate_proposer
from tune_dlrml.study.history import TrialRow
from tune_dlrml.study.study import SearchStudy

CODE = "def bend(pairs, *, beta):\n    return F.softplus(-beta * pairs.margin_B)\n"


def config(**section: Any) -> SearchConfig:
    known = {"candidates": 3, "trials_per_candidate": 2, "limits": {"calls": 9}}
    return discovery_search({"scheduler": None, "sampler": "random", "baseline": None}, **known | section)


def record(number: int, stage: Any, **changes: Any) -> ProposalRecord:
    known = ProposalRecord(
        number=number, proposer="openai:some", times_asked=1, reply="...", calls=1, tokens=100, stage=stage
    )
    return replace(known, **changes)


def accepted(number: int, label: str, beta: Any = 0.1) -> ProposalRecord:
    loss = ProposedLoss.model_validate({"code": CODE, "params": {"beta": beta}})
    return record(number, "accepted", label=label, loss=loss.model_dump(mode="json"))


def row(number: int, label: str, state: State) -> TrialRow:
    spec = TrialSpec.model_construct(number=number, branch=label, loss=None, training=None, params={})
    return TrialRow(number, state, "", {}, spec, None, 0, 0, {})


def said(folder: Path, records: list[ProposalRecord], rows: list[TrialRow], **section: Any) -> Any:
    search = config(**section)
    assert search.discovery is not None
    archive = Archive(folder, search.discovery)
    for each in records:
        archive.write(each)
    return progress(search, archive, rows)


def test_proposals_are_counted_by_stage_and_candidates_by_their_trials(tmp_path: Path):
    searched = {"log_uniform": [0.01, 1]}
    records = [
        accepted(0, "fixed"),
        record(1, "syntax", reason="no function", idle_s=30.5),
        accepted(2, "half", searched),
        record(3, "novelty", reason="same as dpo", calls=2, times_asked=2),
        record(4, "checks", reason="uphill", idle_s=11.0),
        accepted(5, "new", searched),
    ]
    # One trial of a loss with nothing to vary; of the other one of two has ended.
    rows = [row(0, "dpo", State.COMPLETE), row(1, "fixed", State.DIVERGED), row(2, "half", State.PRUNED)]
    found = said(tmp_path, records, rows, candidates=4)
    assert (found.proposals, found.stages) == (6, {"accepted": 3, "syntax": 1, "novelty": 1, "checks": 1})
    assert (found.trained, found.in_training, found.waiting) == (1, 1, 1)
    assert (found.calls, found.most_calls, found.tokens) == (8, 9, 600)
    assert found.sentence() == (
        "6 proposals (1 refused at syntax, 1 refused at checks, 1 refused at novelty, 3 accepted); of 4 candidates "
        "1 trained, 1 in training, 1 waiting; 8 of 9 requests and 600 of 400,000 tokens used, 42 s in "
        "which worker groups waited for a loss; the next loss is asked for when a worker group needs one"
    )


@pytest.mark.parametrize(
    ("records", "now"),
    [
        ([], "nothing was asked yet; openai:some will be"),
        ([record(0, "asked", reply=None, calls=0)], "question 0 waits for the reply of openai:some"),
        ([record(0, "asked", reply=None, calls=0, times_asked=2)], "openai:some, asked 2 times"),
        ([record(0, "asked")], "the reply to question 0 is checked next"),
        ([record(0, "answer", reply=None, reason="no reply: 503")], "the last question had no reply: 503"),
        (
            [record(0, "syntax", calls=9)],
            "discovery.limits.calls are used up, so nothing is asked any more; raise them",
        ),
        ([accepted(0, "one"), accepted(1, "two"), accepted(2, "three")], "all candidates are found"),
    ],
)
def test_what_a_discovery_waits_for_or_why_it_has_ended(tmp_path: Path, records: list[ProposalRecord], now: str):
    assert now in said(tmp_path, records, []).now


def test_status_has_a_line_on_a_discovery(tmp_path: Path):
    search, place = config(), SearchPlace(tmp_path)
    assert search.discovery is not None
    folder = place.folder("found")
    archive = Archive(folder / PROPOSALS, search.discovery)
    archive.write(accepted(0, "bend"))
    (folder / "search.yaml").write_text(to_yaml(search))
    study = SearchStudy(search, candidate_proposer(search, archive), place.study_url("found"), full_steps=40)
    study.ask()
    study.close()
    shown = CliRunner().invoke(app, ["status", "found", "--storage", str(tmp_path)])
    assert shown.exit_code == 0
    assert "discovery: 1 proposal (1 accepted); of 3 candidates 0 trained, 0 in training, 1 waiting" in shown.output
    document = CliRunner().invoke(app, ["status", "found", "--storage", str(tmp_path), "--json"])
    assert '"waiting": 1' in document.output
