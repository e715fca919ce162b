"""The thread that asks: what it asks ahead, what it leaves to the next driver, and when it ends."""

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import pytest
from made_search import discovery_search

from tune_dlrml.config import AnyLoss, SearchConfig, to_yaml
from tune_dlrml.discovery.archive import PROPOSALS, Archive
from tune_dlrml.discovery.asking import Answer
from tune_dlrml.discovery.examining import Examined, Examiner
from tune_dlrml.discovery.reply import read_reply
from tune_dlrml.errors import InputError
from tune_dlrml.evaluation.records import Message
from tune_dlrml.records import State, TrialOutcome
from tune_dlrml.search import discovering
from tune_dlrml.search.discovering import Discovering
from tune_dlrml.search.idle import IdleTime
from tune_dlrml.search.result import JUDGED, RANKING, SearchPlace
from tune_dlrml.study.candidates import candidate_proposer
from tune_dlrml.study.study import SearchStudy

WAIT_S = 60.0


def good(name: str, form: str) -> str:
    body = f"    # beta: 0.01 to 1, log\n    z = beta * pairs.margin_B\n    return {form}"
    return f"```python\ndef {name}(pairs, *, beta):\n{body}\n```"


REPLIES = [
    good("exponential", "torch.exp(-z)"),
    "no function here",
    good("square", "(z - 0.3) ** 2"),
    good("squared_hinge", "torch.relu(0.6 - z) ** 2"),
    good("straight", "-z"),
]


class Lenient:
    """Accepts every function, without a process: what is refused is tested with the examiner itself."""

    def __init__(self, config: SearchConfig) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def examine(self, reply: str, losses: Mapping[str, AnyLoss]) -> Examined:
        try:
            proposal = read_reply(reply, {})
        except InputError as error:
            return Examined("syntax", str(error))
        return Examined("accepted", "", proposal.name, proposal.reasoning, proposal.loss)


class Scripted:
    """A proposer that replies in turn; `Exception`s are raised."""

    def __init__(self, replies: Sequence[str | Answer | Exception]) -> None:
        self.replies, self.asked = list(replies), 0
        self.new = threading.Condition()

    def ask(self, messages: Sequence[Message], *, seed: int, calls: int, tokens: int, seconds: float) -> Answer:
        with self.new:
            reply = self.replies[self.asked]
            self.asked += 1
            self.new.notify_all()
        if isinstance(reply, Exception):
            raise reply
        return reply if isinstance(reply, Answer) else Answer(reply, tokens=10)

    def close(self) -> None:
        pass


class Silent(Scripted):
    """Does not reply until the search is left."""

    def __init__(self) -> None:
        super().__init__([Answer(None, "the search was left", calls=0)])
        self.left = threading.Event()

    def ask(self, messages: Sequence[Message], **limits: Any) -> Answer:
        assert self.left.wait(WAIT_S)
        return super().ask(messages, **limits)

    def close(self) -> None:
        self.left.set()


class Found:
    """A search with a discovery, whose trials are issued by the test."""

    def __init__(self, folder: Path, **section: Any) -> None:
        known = {"candidates": 2, "trials_per_candidate": 1, "seeds_losses": ["dpo"]}
        self.config = discovery_search({"scheduler": None, "sampler": "random", "baseline": None}, **known | section)
        self.place = SearchPlace(folder)
        place = self.place.folder("found")
        place.mkdir(parents=True, exist_ok=True)
        (place / "search.yaml").write_text(to_yaml(self.config))
        assert self.config.discovery is not None
        self.archive = Archive(place / PROPOSALS, self.config.discovery)
        proposer = candidate_proposer(self.config, self.archive)
        self.study = SearchStudy(self.config, proposer, self.place.study_url("found"), full_steps=40)
        self.notices: list[str] = []
        self.scripts: dict[str, Scripted] = {}
        prepared: Any = SimpleNamespace(config=self.config, place=self.place, archive=self.archive, proposer_key=None)
        self.thread = Discovering(prepared)

    def issue_all(self) -> None:
        while self.study.ask() is not None:
            pass
        self.thread.on_change()

    def wait_for(self, condition: Callable[[], bool]) -> None:
        gone = threading.Event()
        for _ in range(int(WAIT_S / 0.02)):
            if condition():
                return
            gone.wait(0.02)
        raise AssertionError(f"not within {WAIT_S:.0f} s; {self.notices}")


@pytest.fixture
def search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Found]]:
    monkeypatch.setattr(discovering, "FAULT_S", 0.0)
    monkeypatch.setattr(discovering, "Examiner", Lenient)
    begun: list[Found] = []

    def begin(
        replies: Sequence[str | Answer | Exception] = (), scripts: dict[str, Scripted] | None = None, **section: Any
    ) -> Found:
        found = Found(tmp_path, **section)
        found.scripts = {"openai:some": Scripted(replies)} if scripts is None else scripts
        monkeypatch.setattr(discovering, "asker_of", lambda name, *_: found.scripts[name])
        found.thread.begin(found.notices.append)
        begun.append(found)
        return found

    yield begin
    for each in begun:
        each.thread.leave()
        each.study.close()


def read_again(found: Found) -> Archive:
    """What a new driver finds."""
    assert found.config.discovery is not None
    return Archive(found.archive.folder, found.config.discovery)


def stages(found: Found) -> list[str]:
    return [record.stage for record in found.archive.records()]


def test_one_candidate_is_found_ahead_and_the_next_when_it_is_trained(search: Callable[..., Found]):
    found = search(REPLIES)
    found.wait_for(lambda: stages(found) == ["accepted"])
    assert [record.label for record in found.archive.records()] == ["exponential"]
    found.issue_all()
    found.wait_for(lambda: found.archive.ended)
    assert stages(found) == ["accepted", "syntax", "accepted"]
    found.issue_all()
    assert [row.spec and row.spec.branch for row in found.study.rows()] == ["dpo", "exponential", "square"]
    assert not found.study.waits()


def test_scores_are_put_down_when_a_trial_ends_also_behind_the_last_question(search: Callable[..., Found]):
    found = search(REPLIES[:1], candidates=1)
    found.wait_for(lambda: found.archive.ended)
    found.issue_all()
    found.study.judge(1, 40, {"eval_accuracy": 0.7})
    found.study.finish(TrialOutcome(1, State.COMPLETE, "all steps done"), 40)
    found.thread.on_change()
    found.wait_for(lambda: found.archive.records()[0].scores.get("value") == 0.7)


def test_the_next_question_says_how_judges_rated_the_answers_of_a_loss(search: Callable[..., Found]):
    found = search(REPLIES, seeds_losses=["dpo"])
    found.wait_for(lambda: stages(found) == ["accepted"])
    assert found.study.ask() is not None
    found.study.judge(0, 40, {"eval_accuracy": 0.7})
    found.study.finish(TrialOutcome(0, State.COMPLETE, "all steps done"), 40)
    folder = found.place.folder("found")
    (folder / "trials/0").mkdir(parents=True)
    ranking, rating = {"questionnaire": "q", "judges": ["openai:judge"]}, {"judge": "openai:judge", "score": 6.5}
    (folder / RANKING).write_text(json.dumps(ranking))
    judged = {"questionnaire": "q", "scores": [rating], "differences": [], "pairs": []}
    (folder / "trials/0" / JUDGED).write_text(json.dumps(judged))
    found.issue_all()
    found.wait_for(lambda: len(found.archive.records()) > 1)
    prompt = found.archive.records()[1].messages[1]["content"]
    assert "dpo: held-out accuracy 0.700" in prompt and "answers rated 6.50 of 10 by openai:judge" in prompt


def test_a_question_under_way_is_asked_again_under_its_number(search: Callable[..., Found], tmp_path: Path):
    first = search([Answer(None, "the search was left", calls=0)])
    first.thread.leave()
    # What a driver leaves that dies while it waits for a reply: the question without an answer.
    left = first.archive.records()[-1]
    if left.stage != "asked":
        first.archive.write(replace(left, stage="asked", reason="", times_asked=1))
    again = search(REPLIES)
    again.wait_for(lambda: stages(again) == ["accepted"])
    (record,) = again.archive.records()
    assert (record.number, record.times_asked) == (0, 2)
    assert record.messages == left.messages


def test_the_wait_for_a_question_that_a_driver_leaves_is_counted_whether_it_is_ended_or_killed(
    search: Callable[..., Found], monkeypatch: pytest.MonkeyPatch
):
    now = [0.0]
    monkeypatch.setattr(discovering, "IdleTime", lambda groups: IdleTime(2, lambda: now[0]))
    first = search(scripts={"openai:some": Silent()})
    first.wait_for(lambda: stages(first) == ["asked"])
    for now[0], kept in ((0.0, 0.0), (9.0, 0.0), (12.0, 24.0), (15.0, 24.0)):  # two groups wait
        first.thread.on_wait(running=0)
        assert read_again(first).records()[0].idle_s == kept
    now[0] = 50.0  # the end of a search takes its time, in which no group waits
    first.thread.leave()
    assert read_again(first).records()[0].idle_s == 30.0
    again = search(REPLIES)
    again.wait_for(lambda: stages(again) == ["accepted"])
    assert again.archive.records()[0].idle_s == 30.0


def test_a_reply_that_was_received_is_examined_without_a_question(search: Callable[..., Found]):
    first = search(REPLIES)
    first.wait_for(lambda: stages(first) == ["accepted"])
    first.thread.leave()
    (record,) = first.archive.records()
    first.archive.write(replace(record, stage="asked", label="", loss=None))
    again = search(REPLIES[2:])
    again.wait_for(lambda: stages(again) == ["accepted"])
    assert [each.label for each in again.archive.records()] == ["exponential"]
    assert again.scripts["openai:some"].asked == 0


def test_the_caps_end_a_discovery_and_say_so(search: Callable[..., Found]):
    found = search(["nothing"] * 5, limits={"calls": 3})
    found.wait_for(lambda: found.archive.ended)
    assert stages(found) == ["syntax"] * 3
    assert "discovery.limits.calls are used up: 0 of 2 candidates were found" in found.notices[-1]
    found.issue_all()
    assert found.study.num_trials == 1


def test_a_run_whose_time_is_over_asks_nothing_more_and_says_so(search: Callable[..., Found]):
    found = search([*REPLIES], limits={"deadline_s": 1e-6})
    found.wait_for(lambda: found.archive.ended)
    assert stages(found) == []
    assert "discovery.limits.deadline_s is over" in found.notices[-1] and "0 of 2" in found.notices[-1]


def test_proposers_take_turns_and_one_that_cannot_answer_is_left_out(search: Callable[..., Found]):
    scripts = {"openai:away": Scripted([InputError("a wrong key")]), "openai:there": Scripted(REPLIES[2:])}
    found = search(scripts=scripts, proposer=list(scripts), candidates=1)
    found.wait_for(lambda: found.archive.ended)
    assert [(record.proposer, record.stage) for record in found.archive.records()] == [
        ("openai:away", "answer"),
        ("openai:there", "accepted"),
    ]
    assert any("a wrong key" in notice for notice in found.notices)


def test_a_question_without_a_reply_costs_its_turn_alone(search: Callable[..., Found]):
    found = search([Answer(None, "no reply in 8 requests", calls=8), *REPLIES], candidates=1)
    found.wait_for(lambda: found.archive.ended)
    assert stages(found) == ["answer", "accepted"]
    assert found.archive.left()[0] == 200 - 8 - 1


MIX = "    m = torch.sigmoid({c} * z)\n    return (1 - m) * F.softplus(-z) + m * torch.exp(-z)"
KNOWN_LOSSES = [
    ("dpo", "contrast", "    return torch.log(1 + torch.exp(-z))"),
    ("hinge", "hockey_stick", "    return torch.clamp(1 - z, min=0) * 2"),
    ("ipo", "bowl", "    return (pairs.margin_B - 1 / (2 * beta)) ** 2"),
    ("discopop(tau=0.05)", "gated", MIX.format(c=20)),
    ("discopop(tau=0.07)", "soft_gate", MIX.format(c="(1 / 0.07)")),
    ("cell(alpha=0.5)", "two_terms", "    return 0.5 * torch.exp(-z) + 0.5 * F.softplus(-z)"),
    ("dlrml(c=5)", "wide_gate", MIX.format(c=5)),
]


def test_known_losses_under_foreign_names_are_named_and_cost_no_training(
    search: Callable[..., Found], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(discovering, "Examiner", Examiner)
    forms = [*KNOWN_LOSSES, ("", "skewed", "    return F.softplus(-z) + 0.05 * z ** 2")]
    replies = [
        f"An idea of mine.\n```python\ndef {name}(pairs, *, beta):\n    # beta: 0.01 to 1, log\n"
        f"    z = beta * pairs.margin_B\n{body}\n```"
        for _, name, body in forms
    ]
    found = search(replies, candidates=1)
    found.wait_for(lambda: found.archive.ended)
    assert stages(found) == ["novelty"] * len(KNOWN_LOSSES) + ["accepted"]
    for record, (double, _, _) in zip(found.archive.records(), KNOWN_LOSSES, strict=False):
        assert double in record.reason.removeprefix("same as ").split(" within")[0].split(" = ")
    found.issue_all()
    assert [row.spec and row.spec.branch for row in found.study.rows()] == ["dpo", "skewed"]
