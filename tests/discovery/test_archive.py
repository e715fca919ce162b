"""The files of proposals: what is on disk before it is acted on, and what a new driver makes of it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tune_dlrml.config import DiscoveryConfig
from tune_dlrml.discovery.archive import Archive, ProposalRecord
from tune_dlrml.discovery.table import proposals_table
from tune_dlrml.losses.custom.config import CustomParams
from tune_dlrml.losses.dpo.config import DpoLoss
from tune_dlrml.losses.proposed.config import ProposedLoss
from tune_dlrml.losses.registry import build_loss
from tune_dlrml.system.own_code import load_function

CODE = "def bend(pairs, *, beta):\n    return F.softplus(-beta * pairs.margin_B)\n"
LOSS = ProposedLoss(code=CODE, params=CustomParams(beta=0.1)).model_dump(mode="json")


def config(**changes: Any) -> DiscoveryConfig:
    return DiscoveryConfig.model_validate({"proposer": "openai:some", "candidates": 2} | changes)


def asked(number: int, **changes: Any) -> ProposalRecord:
    return replace(ProposalRecord(number=number, proposer="openai:some", times_asked=1), **changes)


def accepted(number: int, label: str) -> ProposalRecord:
    return asked(number, reply="...", calls=1, stage="accepted", label=label, loss=LOSS)


def test_a_record_is_read_again_as_it_was_written(tmp_path: Path):
    record = asked(
        0,
        parents=("dpo", "hinge"),
        messages=({"role": "user", "content": "Propose."},),
        reply="é ```code```",
        tokens=12,
        seconds=1.5,
        stage="accepted",
        label="bend",
        loss=LOSS,
        found={"slope": -0.5},
    )
    Archive(tmp_path, config()).write(record)
    assert Archive(tmp_path, config()).records() == [record]


def test_the_function_of_a_proposal_is_a_file_that_custom_takes(tmp_path: Path):
    Archive(tmp_path, config()).write(accepted(0, "bend"))
    path = tmp_path / "0000.py"
    function = load_function(f"{path}:bend")
    assert CODE.strip() in path.read_text()
    assert function.sha256
    assert type(build_loss(ProposedLoss.model_validate(LOSS))).__name__ == "Custom"


def test_candidates_are_the_accepted_ones_in_their_order(tmp_path: Path):
    archive = Archive(tmp_path, config())
    for record in (accepted(0, "one"), asked(1, reply="", stage="syntax"), accepted(2, "two")):
        archive.write(record)
    assert [each.label for each in archive.accepted()] == ["one", "two"]
    assert archive.is_full()


def test_a_new_driver_knows_that_all_candidates_are_there(tmp_path: Path):
    archive = Archive(tmp_path, config())
    assert not archive.ended
    archive.write(accepted(0, "one"))
    archive.write(accepted(1, "two"))
    assert Archive(tmp_path, config()).ended
    assert not Archive(tmp_path, config(candidates=3)).ended


@pytest.mark.parametrize(
    ("records", "left"),
    [
        ([], (10, 100)),
        ([asked(0)], (9, 100)),
        ([asked(0, times_asked=3)], (7, 100)),
        ([asked(0, reply="no", stage="syntax", calls=4, tokens=30)], (6, 70)),
        # Asked twice, since a driver died before the first reply; the second took three requests.
        ([asked(0, reply="no", stage="syntax", calls=3, tokens=30, times_asked=2)], (6, 70)),
    ],
)
def test_what_is_left_of_the_caps(tmp_path: Path, records: list[ProposalRecord], left: tuple[int, int]):
    archive = Archive(tmp_path, config(limits={"calls": 10, "tokens": 100}))
    for record in records:
        archive.write(record)
    assert archive.left() == left


def test_a_search_whose_caps_are_used_up_is_over_unless_a_reply_is_to_be_examined(tmp_path: Path):
    limits = {"calls": 1, "tokens": 100}
    archive = Archive(tmp_path, config(limits=limits))
    record = archive.write(asked(0, reply="...", calls=1))
    assert not Archive(tmp_path, config(limits=limits)).ended
    archive.write(replace(record, stage="syntax"))
    assert Archive(tmp_path, config(limits=limits)).ended
    assert not Archive(tmp_path, config(limits={"calls": 2, "tokens": 100})).ended


def test_a_label_is_one_that_no_other_loss_has(tmp_path: Path):
    archive = Archive(tmp_path, config())
    archive.write(accepted(0, "bend"))
    assert archive.label_of("bend", ["dpo"]) == "bend_2"
    assert archive.label_of("dpo", ["dpo"]) == "dpo_2"


def test_who_follows_sees_all_proposals_at_once_and_after_every_change(tmp_path: Path):
    archive, seen = Archive(tmp_path, config()), []
    archive.write(asked(0))
    archive.follow(lambda records: seen.append([record.stage for record in records]))
    archive.write(accepted(0, "one"))
    archive.write(asked(1))
    archive.score("one", {"value": 0.6})
    assert seen == [["asked"], ["accepted"], ["accepted", "asked"], ["accepted", "asked"]]


def test_a_trial_of_a_proposal_is_known_by_its_function_and_no_other_is(tmp_path: Path):
    archive = Archive(tmp_path, config())
    archive.write(asked(0, reply="...", stage="novelty", loss=LOSS))
    archive.write(accepted(1, "bend"))
    again = archive.proposal_of(ProposedLoss(code=CODE, params=CustomParams(beta=0.3)))
    assert again is not None and again.number == 1
    assert archive.proposal_of(DpoLoss()) is None


def test_the_table_of_proposals_has_a_row_for_each(tmp_path: Path):
    scores = {
        "trial": 4,
        "value": 0.6,
        "settings": {"beta": 0.12345},
        "context": {"eval_kl": 2.0},
        "states": {"complete": 1},
    }
    one = replace(accepted(0, "one"), parents=("dpo", "hinge"), found={"slope": -0.5, "trap": None}, scores=scores)
    table = proposals_table([one, asked(1, stage="answer", reason="no reply", refusals=(0,))])
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    assert [row["proposal"] for row in rows] == [0, 1]
    assert (rows[0]["shown"], rows[0]["slope"], rows[0]["trap"]) == ("dpo, hinge", -0.5, None)
    assert (rows[0]["setting"], rows[0]["KL"], rows[0]["trials"]) == ("beta 0.1235", 2.0, "complete 1")
    assert rows[0]["code"] == CODE
    assert (rows[1]["stage"], rows[1]["refused ones shown"], rows[1]["value"]) == ("answer", "0", None)
    json.dumps(table, allow_nan=False)


def test_no_number_that_is_not_finite_gets_into_a_file(tmp_path: Path):
    with pytest.raises(ValueError, match="JSON"):
        Archive(tmp_path, config()).write(asked(0, found={"slope": float("nan")}))
    assert not (tmp_path / "0000.json").exists()


def test_scores_are_put_into_the_file_of_their_proposal(tmp_path: Path):
    archive = Archive(tmp_path, config())
    archive.write(accepted(0, "one"))
    archive.score("one", {"value": 0.6})
    archive.score("nobody", {"value": 0.7})
    assert json.loads((tmp_path / "0000.json").read_text())["scores"] == {"value": 0.6}
