"""Trials of losses that become known while a search runs."""

from pathlib import Path
from typing import Any

import pytest
from made_search import discovery_search

from tune_dlrml.config import SearchConfig, parse_config
from tune_dlrml.doctor.cost import number_of_trials
from tune_dlrml.domains import Choice, Range, middle_of
from tune_dlrml.errors import InputError
from tune_dlrml.losses.registry import LOSSES
from tune_dlrml.records import State, TrialOutcome
from tune_dlrml.space import TrialSpec
from tune_dlrml.study.candidates import Candidate, candidate_proposer, free_label
from tune_dlrml.study.study import SearchStudy

DPO = {"name": "dpo", "beta": {"log_uniform": [0.01, 1]}}


def config_of(search: dict[str, Any] | None = None, space: dict[str, Any] | None = None, **own: Any) -> SearchConfig:
    section = {"candidates": 2, "trials_per_candidate": 3, "seeds_losses": [DPO, "hinge"]} | own
    return discovery_search({"scheduler": None, "sampler": "random"} | (search or {}), space, **section)


class Found:
    """Proposals as the test lets them come."""

    def __init__(self) -> None:
        self.ended = False
        self._accepted: list[Candidate] = []

    def accepted(self) -> list[Candidate]:
        return self._accepted

    def comes(self, label: str, **fields: Any) -> None:
        self._accepted.append(Candidate(label, LOSSES[fields["name"]].config.model_validate(fields)))


def open_search(config: SearchConfig, found: Found, folder: Path) -> SearchStudy:
    url = f"sqlite:///{folder}/study.db"
    return SearchStudy(config, candidate_proposer(config, found), url, full_steps=40)


def asked(study: SearchStudy) -> list[TrialSpec]:
    return list(iter(study.ask, None))


def test_the_losses_of_the_file_come_first_and_each_has_its_trials(tmp_path: Path):
    study = open_search(config_of(), Found(), tmp_path)
    # Hinge has a fixed beta here, so that a second trial would repeat the first.
    assert [spec.branch for spec in asked(study)] == ["baseline", "dpo", "dpo", "dpo", "hinge"]
    assert study.waits() and study.num_trials == 1 + 3 + 1 + 2 * 3


def test_a_search_waits_for_candidates_and_goes_on_with_each(tmp_path: Path):
    found = Found()
    study = open_search(config_of(), found, tmp_path)
    asked(study)
    found.comes("mine", name="ipo", beta={"log_uniform": [0.01, 1]})
    assert [spec.branch for spec in asked(study)] == ["mine"] * 3
    assert study.waits()
    found.comes("other", name="hinge", beta=0.3)
    assert [spec.branch for spec in asked(study)] == ["other"]


def test_a_search_ends_with_fewer_candidates_where_no_more_come(tmp_path: Path):
    found = Found()
    study = open_search(config_of(), found, tmp_path)
    issued = asked(study)
    found.ended = True
    assert study.ask() is None and not study.waits()
    assert study.num_trials == len(issued)


def test_the_first_trial_of_a_loss_is_the_middle_of_its_domains(tmp_path: Path):
    space = {"training": {"learning_rate": {"log_uniform": [1e-7, 1e-5]}}}
    study = open_search(config_of(space=space), Found(), tmp_path)
    first = asked(study)[1]
    assert first.params["dpo.beta"] == pytest.approx(0.1)
    assert first.training.learning_rate == pytest.approx(1e-6)
    assert first.loss.beta == pytest.approx(0.1)


def test_a_resumed_search_issues_the_same_points(tmp_path: Path):
    def issue(folder: Path, *, killed: bool) -> list[dict[str, Any]]:
        folder.mkdir()
        found, params = Found(), []
        for _ in range(3):
            study = open_search(config_of(), found, folder)
            for spec in asked(study):
                params.append(dict(spec.params))
                study.record(spec.number, 40, 0.5)
                study.finish(TrialOutcome(spec.number, State.COMPLETE, "done"), 40)
            if killed:
                study.close()
            found.comes(f"loss{len(params)}", name="ipo", beta={"log_uniform": [0.01, 1]})
        return params

    assert issue(tmp_path / "a", killed=True) == issue(tmp_path / "b", killed=False)


@pytest.mark.parametrize(
    ("domain", "expected"),
    [
        (Range(kind="log_uniform", low=0.01, high=1.0), 0.1),
        (Range(kind="uniform", low=1.0, high=4.0), 2.5),
        (Range(kind="log_int_uniform", low=2, high=32), 8),
        (Range(kind="int_uniform", low=3, high=5), 4),
        (Choice(values=(7, 1, 9)), 7),
    ],
)
def test_the_middle_of_a_domain(domain: Range | Choice, expected: float):
    assert middle_of(domain) == pytest.approx(expected)
    assert middle_of(domain) in domain


def test_a_label_that_is_taken_gets_a_number():
    assert free_label("mine", ["yours"]) == "mine"
    assert free_label("mine", ["mine", "mine_2"]) == "mine_3"


def test_losses_of_a_discovery_may_be_names_or_sections():
    config = config_of(seeds_losses=["dpo", "discopop", {"name": "dlrml", "c": 5}])
    assert list(config.known_losses().branches()) == ["dpo", "discopop", "dlrml_c"]
    assert config.needs_reference()


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"space": {"losses": [DPO]}}, "space.losses"),
        ({"search": {"num_trials": 5}}, "search.num_trials"),
        ({"search": {"points": [{"loss": "dpo"}]}}, "search.points"),
        ({"search": {"start_from": {"search": "earlier"}}}, "search.start_from"),
        ({"search": {"sampler": "grid"}}, "search.sampler"),
        ({"proposer": "gpt-4o"}, "discovery.proposer"),
        ({"proposer": ["openai:a", "openai:a"]}, "discovery.proposer"),
        ({"proposer_url": "http://key@host/v1"}, "discovery.proposer_url"),
        ({"proposer": "local:org/model", "proposer_url": "http://host/v1"}, "discovery.proposer_url"),
        ({"candidates": 0}, "discovery.candidates"),
        ({"limits": {"tokens": 0}}, "discovery.limits.tokens"),
        ({"seeds_losses": []}, "discovery.seeds_losses"),
        ({"seeds_losses": ["dpoo"]}, "discovery.seeds_losses"),
    ],
)
def test_what_a_discovery_cannot_be(changes: dict[str, Any], key: str):
    with pytest.raises(InputError, match=key.replace(".", r"\.")):
        config_of(**changes)


def test_a_search_without_discovery_needs_a_loss_and_no_scalars():
    document = config_of().model_dump(mode="json") | {"discovery": None}
    with pytest.raises(InputError, match=r"space\.losses"):
        parse_config(document, source="test")
    document["space"] = {"losses": ["dpo"], "scalars": {"beta": {"uniform": [0, 1]}}}
    document["space"]["losses"] = [DPO]
    with pytest.raises(InputError, match=r"space\.scalars"):
        parse_config(document, source="test")


def test_the_doctor_counts_the_trials_of_a_discovery():
    # The baseline, three of dpo, one of hinge, whose beta is fixed, and three of each of two candidates.
    assert number_of_trials(config_of()) == 1 + 3 + 1 + 2 * 3
