import json
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from tune_dlrml.errors import InputError, JudgeEndedError, StorageError
from tune_dlrml.evaluation.judges.replies import MAX_RUNS, CachedJudge, ReplyCache, UnfinishedError, judge_all
from tune_dlrml.evaluation.records import Inquiry, Judgement


def inquiry(number, *, text=None, turn=1):
    messages = ({"role": "user", "content": text or f"answer {number}"},)
    return Inquiry("rating", "single-v1", messages, question_id=number, turn=turn)


class Judge:
    """Rates by the question's number, unless told otherwise; counts what it is asked."""

    name, identity = "openai:toy", "openai:toy at home"

    def __init__(self, verdict=lambda inquiry: float(1 + inquiry.question_id % 10), *, heard=True):
        self.asked = []
        self._verdict, self._heard = verdict, heard

    def ask(self, inquiry):
        self.asked.append(inquiry.question_id)
        verdict = self._verdict(inquiry)
        return Judgement(
            self.name,
            inquiry.key(self.name),
            inquiry.question_id,
            inquiry.turn,
            verdict,
            f"so: {verdict}",
            calls=2,
            heard=self._heard,
        )


def told(judgements):
    return [(judgement.question_id, judgement.turn, judgement.verdict, judgement.calls) for judgement in judgements]


def test_what_was_judged_is_not_asked_again_by_the_next_run(tmp_path):
    first, second = Judge(), Judge()
    before = CachedJudge(first, ReplyCache(tmp_path / "replies.jsonl")).ask(inquiry(3))
    after = CachedJudge(second, ReplyCache(tmp_path / "replies.jsonl")).ask(inquiry(3))
    assert (first.asked, second.asked) == ([3], [])
    assert after.as_json() == before.as_json() | {"calls": 0}


def test_the_key_is_of_the_content_and_the_judge_not_of_the_question(tmp_path):
    judge = Judge()
    cached = CachedJudge(judge, ReplyCache(tmp_path / "replies.jsonl"))
    cached.ask(inquiry(3, text="same"))
    kept = cached.ask(inquiry(4, text="same", turn=2))
    assert (kept.question_id, kept.turn, kept.verdict, kept.calls) == (4, 2, 4.0, 0)
    judge.identity = "openai:toy at another address"
    again = CachedJudge(judge, ReplyCache(tmp_path / "replies.jsonl")).ask(inquiry(3, text="same"))
    assert judge.asked == [3, 3]
    assert kept.key == again.key == inquiry(3, text="same").key("openai:toy")  # that of the name, as for `Judge.ask`


@pytest.mark.parametrize("verdict", [1.0, 10.0, 5.25, "A", "B", "tie"])
def test_every_verdict_comes_back_as_it_was(tmp_path, verdict):
    CachedJudge(Judge(lambda _: verdict), ReplyCache(tmp_path / "replies.jsonl")).ask(inquiry(1))
    kept = ReplyCache(tmp_path / "replies.jsonl").get(inquiry(1).key(Judge.identity))
    assert kept.verdict == verdict


def test_an_unscored_judgement_is_asked_for_again_by_the_next_run(tmp_path):
    CachedJudge(Judge(lambda _: None), ReplyCache(tmp_path / "replies.jsonl")).ask(inquiry(3))
    judge = Judge()
    assert CachedJudge(judge, ReplyCache(tmp_path / "replies.jsonl")).ask(inquiry(3)).verdict == 4.0
    assert judge.asked == [3]


def test_an_inquiry_that_is_unscored_in_so_many_runs_is_so_for_good(tmp_path):
    silent = Judge(lambda _: None)
    for run in range(MAX_RUNS):
        cached = CachedJudge(silent, ReplyCache(tmp_path / "replies.jsonl"))
        found = [cached.ask(inquiry(3)), cached.ask(inquiry(3))]
        assert silent.asked == [3] * (run + 1)  # once a run
        assert told(found) == [(3, 1, None, 2), (3, 1, None, 0)]
    judge = Judge()
    found = CachedJudge(judge, ReplyCache(tmp_path / "replies.jsonl")).ask(inquiry(3))
    assert judge.asked == []
    assert told([found]) == [(3, 1, None, 0)]
    assert found.words == f"unscored for good after {MAX_RUNS} runs: so: None"


def test_a_verdict_in_a_later_run_stands_above_unscored_ones(tmp_path):
    for verdict in (None, 7.0):
        CachedJudge(Judge(lambda _, verdict=verdict: verdict), ReplyCache(tmp_path / "replies.jsonl")).ask(inquiry(3))
    assert ReplyCache(tmp_path / "replies.jsonl").get(inquiry(3).key(Judge.identity)).verdict == 7.0


def test_a_judge_that_was_not_heard_is_asked_again_in_the_same_run_and_in_all_later_ones(tmp_path):
    away = Judge(lambda _: None, heard=False)
    for _ in range(MAX_RUNS + 1):
        cached = CachedJudge(away, ReplyCache(tmp_path / "replies.jsonl"))
        assert told([cached.ask(inquiry(3)), cached.ask(inquiry(3))]) == [(3, 1, None, 2)] * 2
    assert len(away.asked) == 2 * (MAX_RUNS + 1)


def test_a_torn_last_line_counts_nowhere_and_is_cut_off(tmp_path):
    path = tmp_path / "replies.jsonl"
    cached = CachedJudge(Judge(), ReplyCache(path))
    for number in range(3):
        cached.ask(inquiry(number))
    whole = path.read_bytes()
    for length in [*range(0, len(whole), 37), len(whole) - 1]:
        path.write_bytes(whole[:length])
        judge = Judge()
        again = CachedJudge(judge, ReplyCache(path))
        assert [again.ask(inquiry(number)).verdict for number in range(3)] == [1.0, 2.0, 3.0]
        assert len(judge.asked) == 3 - whole[:length].count(b"\n")
        assert sorted(path.read_bytes().splitlines()) == sorted(whole.splitlines())


@pytest.mark.parametrize(
    "change",
    [
        {"verdict": 0},
        {"verdict": 11.0},
        {"verdict": float("nan")},
        {"verdict": "C"},
        {"verdict": [5]},
        {"words": 5},
        {"key": None},
        {"other": 1},
    ],
)
def test_a_line_that_is_no_judgement_is_skipped_and_logged(tmp_path, caplog, change):
    path = tmp_path / "replies.jsonl"
    CachedJudge(Judge(), ReplyCache(path)).ask(inquiry(3))
    path.write_text(json.dumps(json.loads(path.read_text()) | change) + "\n")
    judge = Judge()
    assert CachedJudge(judge, ReplyCache(path)).ask(inquiry(3)).verdict == 4.0
    assert judge.asked == [3]
    assert "not a judgement" in caplog.text


@pytest.mark.parametrize("line", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 5000])
def test_a_line_that_is_no_object_is_passed_over(tmp_path, line):
    path = tmp_path / "replies.jsonl"
    path.write_bytes(line + b"\n")
    CachedJudge(Judge(), ReplyCache(path)).ask(inquiry(3))
    assert ReplyCache(path).get(inquiry(3).key(Judge.identity)).verdict == 4.0


def test_two_processes_may_keep_replies_in_one_file(tmp_path):
    mine, theirs = (ReplyCache(tmp_path / "replies.jsonl") for _ in range(2))  # as two processes have them
    with ThreadPoolExecutor(8) as pool:
        asked = [
            pool.submit(CachedJudge(Judge(), cache).ask, inquiry(number))
            for number in range(50)
            for cache in (mine, theirs)
        ]
    assert all(future.result().verdict for future in asked)
    judge = Judge()
    assert len(judge_all([inquiry(number) for number in range(50)], CachedJudge(judge, mine), concurrency=4)) == 50
    assert judge.asked == []
    for line in (tmp_path / "replies.jsonl").read_text().splitlines():
        json.loads(line)


def test_what_another_process_keeps_is_found(tmp_path):
    mine, theirs = (ReplyCache(tmp_path / "replies.jsonl") for _ in range(2))
    assert mine.get(inquiry(1).key(Judge.identity)) is None
    CachedJudge(Judge(), theirs).ask(inquiry(1))
    assert mine.get(inquiry(1).key(Judge.identity)).verdict == 2.0


def test_a_file_that_cannot_be_read_or_written_is_reported_as_such(tmp_path):
    (tmp_path / "folder").write_text("no folder")
    cache = ReplyCache(tmp_path / "folder" / "replies.jsonl")
    with pytest.raises(StorageError, match="must be read"):
        cache.get("key")
    with pytest.raises(StorageError, match="must be written"):
        cache.keep(Judge().ask(inquiry(1)))


def test_the_same_inquiry_from_two_threads_is_asked_once(tmp_path):
    begun, go = threading.Event(), threading.Event()

    def slowly(inquiry):
        begun.set()
        go.wait(30)
        return 5.0

    judge = Judge(slowly)
    cached = CachedJudge(judge, ReplyCache(tmp_path / "replies.jsonl"))
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(cached.ask, inquiry(1))
        begun.wait(30)
        second = pool.submit(cached.ask, inquiry(1))
        go.set()
    assert (first.result().calls, second.result().calls) == (2, 0)
    assert judge.asked == [1]


def test_judgements_come_in_the_order_of_the_inquiries_and_each_is_reported():
    heard = []
    judgements = judge_all(
        [inquiry(number) for number in (5, 3, 8, 1)], Judge(), concurrency=3, on_judgement=heard.append
    )
    assert [judgement.question_id for judgement in judgements] == [5, 3, 8, 1]
    assert sorted(told(heard)) == sorted(told(judgements))


def test_the_same_inquiry_twice_in_one_call_is_asked_once_and_answered_twice():
    judge = Judge(lambda _: 6.0)
    judgements = judge_all(
        [inquiry(1, text="same"), inquiry(2, text="other"), inquiry(3, text="same")], judge, concurrency=2
    )
    assert told(judgements) == [(1, 1, 6.0, 2), (2, 1, 6.0, 2), (3, 1, 6.0, 0)]
    assert sorted(judge.asked) == [1, 2]


def test_nothing_to_judge_is_judged_at_once():
    assert judge_all([], Judge(), concurrency=2) == []


def test_a_judge_that_ends_is_asked_no_more_and_what_it_said_is_kept(tmp_path):
    def until_four(inquiry):
        if inquiry.question_id >= 4:
            raise JudgeEndedError("`max_calls` is 4")
        return 5.0

    judge = Judge(until_four)
    cached = CachedJudge(judge, ReplyCache(tmp_path / "replies.jsonl"))
    heard = []
    with pytest.raises(UnfinishedError, match="`max_calls` is 4") as end:
        judge_all([inquiry(number) for number in range(100)], cached, concurrency=1, on_judgement=heard.append)
    assert [judgement.question_id for judgement in end.value.judgements] == [0, 1, 2, 3]
    assert end.value.exit_code == 130
    assert heard == end.value.judgements
    assert judge.asked == [0, 1, 2, 3, 4]
    later = Judge()
    judge_all([inquiry(n) for n in range(6)], CachedJudge(later, ReplyCache(tmp_path / "replies.jsonl")), concurrency=1)
    assert later.asked == [4, 5]


def test_what_is_under_way_when_the_judge_ends_is_waited_for():
    begun, ended = threading.Event(), threading.Event()

    def verdict(inquiry):
        if inquiry.question_id == 0:
            begun.set()
            ended.wait(30)
            return 9.0
        begun.wait(30)
        ended.set()
        raise JudgeEndedError("over")

    with pytest.raises(UnfinishedError) as end:
        judge_all([inquiry(0), inquiry(1)], Judge(verdict), concurrency=2)
    assert told(end.value.judgements) == [(0, 1, 9.0, 2)]


def test_an_error_that_says_more_than_that_the_judge_ended_is_raised_as_it_is():
    both = threading.Barrier(2)

    def verdict(inquiry):
        both.wait(30)
        raise InputError("the key is wrong") if inquiry.question_id else JudgeEndedError("over")

    with pytest.raises(InputError, match="key"):
        judge_all([inquiry(0), inquiry(1)], Judge(verdict), concurrency=2)


def test_an_error_of_the_listener_ends_the_judging():
    over = threading.Event()

    def verdict(inquiry):
        if inquiry.question_id:
            over.wait(30)
        return 5.0

    def full(_):
        raise StorageError("disk full")

    judge = Judge(verdict)
    with pytest.raises(StorageError):
        judge_all([inquiry(number) for number in range(100)], judge, concurrency=1, on_judgement=full)
    over.set()
    assert judge.asked in ([0], [0, 1])


def test_the_error_survives_pickling_with_what_was_judged():
    error = UnfinishedError("over", [Judge().ask(inquiry(1))])
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.judgements) == ("over", error.judgements)
