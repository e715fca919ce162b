import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from evaluation.endpoint_server import (
    EMPTY,
    LATE,
    NO_CHOICES,
    Act,
    EndpointServer,
    completion,
    fails,
    reset,
    says,
    truncated,
)

from tune_dlrml.errors import InputError, JudgeEndedError
from tune_dlrml.evaluation.endpoint.client import (
    BACKOFF_S,
    LONGEST_WAIT_S,
    TRIES,
    Endpoint,
    EndpointSettings,
    NoReplyError,
)
from tune_dlrml.evaluation.endpoint.outage import SILENT_CYCLES, Outage

CHAT = [{"role": "user", "content": "How good is it?"}]
KEY = "sk-very-secret"


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def endpoint(server: EndpointServer, clock: Clock | None = None, **settings) -> Endpoint:
    clock = clock or Clock()
    given = {"model": "scripted", "url": server.url, "key": KEY, "timeout_s": 30.0} | settings
    return Endpoint(EndpointSettings(**given), clock=clock, sleep=clock.sleep)


def ask(asked: Endpoint, **details):
    return asked.complete(CHAT, **({"temperature": 0.0, "max_tokens": 16} | details))


def test_a_completion_comes_with_what_was_asked_for():
    with EndpointServer.scripted([says("fine")]) as server:
        reply = ask(endpoint(server), temperature=0.7, max_tokens=5, seed=3)
    assert (reply.text, reply.calls, reply.finished, reply.first_token_logprobs) == ("fine", 1, True, None)
    (request,) = server.requests
    assert request["path"] == "/v1/chat/completions"
    assert request["headers"]["authorization"] == f"Bearer {KEY}"
    assert request["body"] == {
        "model": "scripted",
        "messages": CHAT,
        "temperature": 0.7,
        "max_tokens": 5,
        "seed": 3,
    }


def test_log_probs_of_the_first_token_are_those_of_the_reply_and_its_rivals():
    first = {
        "token": "m",
        "logprob": -0.1,
        "top_logprobs": [
            {"token": "m", "logprob": -0.1},
            {"token": "M", "logprob": -2.5},
            {"token": "?", "logprob": float("nan")},
        ],
    }
    second = {"token": ".", "logprob": -0.2, "top_logprobs": [{"token": "!", "logprob": -3}]}
    with EndpointServer.scripted([says("m.", logprobs={"content": [first, second]})]) as server:
        reply = ask(endpoint(server), top_logprobs=5)
    assert reply.first_token_logprobs == {"m": -0.1, "M": -2.5}
    assert server.requests[0]["body"] | {"logprobs": True, "top_logprobs": 5} == server.requests[0]["body"]


def test_a_reply_that_was_cut_off_says_so():
    with EndpointServer.scripted([says("half a", finish_reason="length")]) as server:
        assert not ask(endpoint(server)).finished


def test_the_words_of_a_refusal_are_the_text():
    body = completion(None).replace(b'"content": null', b'"content": null, "refusal": "I will not."')
    with EndpointServer.scripted([Act("refusal", body)]) as server:
        reply = ask(endpoint(server))
    assert (reply.text, reply.refused) == ("I will not.", True)


@pytest.mark.parametrize(
    "fault",
    [
        fails(408),
        fails(409),
        fails(429),
        fails(500),
        fails(503),
        fails(529),
        reset("[[9]]"),
        EMPTY,
        NO_CHOICES,
        truncated("[[9]]"),
        Act("a page", b"<html>busy</html>"),
        Act("an error", b'{"error": {"message": "overloaded"}}'),
        Act("a list", b"[]"),
    ],
    ids=lambda act: act.name,
)
def test_what_may_pass_is_asked_again(fault):
    with EndpointServer.scripted([fault, fault, says("fine")]) as server:
        asked = endpoint(server)
        reply = ask(asked)
    assert (reply.text, reply.calls, asked.budget.calls, len(server.requests)) == ("fine", 3, 3, 3)


def test_a_reply_that_does_not_come_in_time_is_asked_for_again():
    with EndpointServer.scripted([LATE, says("fine")]) as server:
        reply = ask(endpoint(server, timeout_s=0.5))
    assert reply.text == "fine"
    assert reply.calls >= 2


def test_waits_double_and_are_drawn_from_the_seed():
    waits = []
    for _ in range(2):
        clock = Clock()
        with EndpointServer.scripted([fails(500)] * 7 + [says("fine")]) as server:
            ask(endpoint(server, clock))
        waits.append(clock.slept)
    assert waits[0] == waits[1]
    longest = [1, 2, 4, 8, 16, 32, 60]
    assert all(limit / 2 <= wait <= limit for wait, limit in zip(waits[0], longest, strict=True))
    assert len({wait / limit for wait, limit in zip(waits[0], longest, strict=True)}) == 7


NOW = datetime(2024, 2, 29, 23, 59, 30, tzinfo=UTC)


@pytest.mark.parametrize(
    ("headers", "wait_s"),
    [
        ({"retry_after": "7"}, 7),
        ({"retry_after": "0.5"}, 0.5),
        ({"retry_after": "86400"}, LONGEST_WAIT_S),
        (
            {
                "retry_after": format_datetime(NOW + timedelta(seconds=45), usegmt=True),
                "x_date": format_datetime(NOW, usegmt=True),
            },
            45,
        ),
        ({"retry_after": format_datetime(NOW, usegmt=True)}, 0),  # long ago
    ],
)
def test_the_server_says_how_long_to_wait(headers, wait_s, monkeypatch):
    date = headers.get("x_date")
    if date:
        monkeypatch.setattr("evaluation.endpoint_server._Handler.date_time_string", lambda *_: date)
    clock = Clock()
    with EndpointServer.scripted([fails(429, **headers), says("fine")]) as server:
        ask(endpoint(server, clock))
    (slept,) = clock.slept
    assert wait_s <= slept <= wait_s + BACKOFF_S


@pytest.mark.parametrize("text", ["soon", "-3", "nan", "inf", "", "Thu, 99 Foo 2024"])
def test_a_wait_that_makes_no_sense_is_the_usual_one_or_none(text):
    clock = Clock()
    with EndpointServer.scripted([fails(429, retry_after=text), says("fine")]) as server:
        ask(endpoint(server, clock))
    assert 0 <= clock.slept[0] <= BACKOFF_S


def test_no_more_calls_than_the_cap_are_sent_by_many_threads():
    with EndpointServer(lambda _: fails(503)) as server, ThreadPoolExecutor(8) as pool:
        asked = endpoint(server, max_calls=13, concurrency=4)
        ends = [future.exception() for future in [pool.submit(ask, asked) for _ in range(8)]]
    assert (asked.budget.calls, len(server.requests)) == (13, 13)
    assert {type(end) for end in ends} <= {JudgeEndedError, NoReplyError}
    assert any("`max_calls` is 13" in str(end) for end in ends)


def test_the_cap_counts_requests_that_failed():
    with EndpointServer.scripted([fails(500), fails(500)]) as server:
        with pytest.raises(JudgeEndedError, match=r"`max_calls` is 2, and 2 requests were sent; .* raise"):
            ask(endpoint(server, max_calls=2))
        assert len(server.requests) == 2


def test_the_cap_on_tokens_counts_the_usage_that_the_endpoint_reports():
    with EndpointServer(lambda _: says("fine", usage=60)) as server:
        asked = endpoint(server, max_tokens=100)
        ask(asked)
        ask(asked)
        assert asked.budget.tokens == 120
        with pytest.raises(JudgeEndedError, match="`max_tokens` is 100, and 120 tokens were used"):
            ask(asked)
        assert len(server.requests) == 2


def test_tokens_are_estimated_where_the_endpoint_does_not_report_them():
    with EndpointServer.scripted([says("five.", usage=None)]) as server:
        asked = endpoint(server)
        ask(asked)
    assert asked.budget.tokens == 5  # 15 characters of the chat and 5 of the reply, four a token


def test_no_request_is_sent_after_the_deadline():
    clock = Clock()
    with EndpointServer(lambda _: says("fine")) as server:
        asked = endpoint(server, clock, deadline_s=50)
        clock.now += 500  # time before the first request does not count
        ask(asked)
        clock.now += 51
        with pytest.raises(JudgeEndedError, match="`deadline_s` is 50, and that time is over"):
            ask(asked)
        assert len(server.requests) == 1


def test_a_wait_beyond_the_deadline_does_not_start():
    clock = Clock()
    limited = EndpointServer.scripted([fails(429, retry_after="55")])
    with limited as server, pytest.raises(JudgeEndedError, match=r"the next request would wait 55.* \(429"):
        ask(endpoint(server, clock, deadline_s=50))
    assert clock.slept == []


def test_a_chat_without_a_reply_leaves_others_theirs():
    with EndpointServer.scripted([fails(500)] * TRIES + [says("fine")]) as server:
        asked = endpoint(server)
        with pytest.raises(NoReplyError, match="500") as end:
            ask(asked)
        assert (end.value.calls, end.value.final) == (TRIES, False)
        assert ask(asked).text == "fine"


def go_silent(asked):
    for _ in range(SILENT_CYCLES - 1):
        with pytest.raises(NoReplyError):
            ask(asked)
    with pytest.raises(JudgeEndedError, match=rf"no reply to at least {SILENT_CYCLES} chats one after another.*503"):
        ask(asked)


def test_an_endpoint_that_stays_away_ends_the_judging():
    with EndpointServer(lambda _: fails(503)) as server:
        go_silent(endpoint(server))
        assert len(server.requests) == SILENT_CYCLES * TRIES


def test_an_endpoint_that_was_away_is_asked_again_later_with_all_its_waits():
    back = threading.Event()
    clock = Clock()
    with EndpointServer(lambda _: says("fine") if back.is_set() else fails(503)) as server:
        asked = endpoint(server, clock)
        go_silent(asked)
        waits = len(clock.slept)
        with pytest.raises(JudgeEndedError, match="one after another"):
            ask(asked)
        assert len(server.requests) == (SILENT_CYCLES + 1) * TRIES
        assert sum(clock.slept[waits:]) > 60
        back.set()
        assert ask(asked).text == "fine"
        back.clear()
        go_silent(asked)


def test_an_endpoint_that_is_away_gets_no_more_calls_than_the_cap():
    with EndpointServer(lambda _: fails(503)) as server:
        asked = endpoint(server, max_calls=SILENT_CYCLES * TRIES + 3)
        go_silent(asked)
        for _ in range(2):
            with pytest.raises(JudgeEndedError, match="`max_calls`"):
                ask(asked)
        assert len(server.requests) == SILENT_CYCLES * TRIES + 3


def test_threads_that_fail_together_are_one_outage():
    threads = 2 * SILENT_CYCLES
    together, back = threading.Barrier(threads), threading.Event()

    def wait(_):
        together.wait(30)  # no thread is done before all of them have sent their last request

    with EndpointServer(lambda _: says("fine") if back.is_set() else fails(503)) as server:
        given = EndpointSettings("scripted", url=server.url, concurrency=threads, timeout_s=30.0)
        asked = Endpoint(given, clock=lambda: 0.0, sleep=wait)
        with ThreadPoolExecutor(threads) as pool:
            ends = [future.exception() for future in [pool.submit(ask, asked) for _ in range(threads)]]
        assert {type(end) for end in ends} == {NoReplyError}
        back.set()
        assert ask(asked).text == "fine"


def test_only_cycles_one_after_another_make_an_outage():
    outage = Outage()
    first, second = outage.begin(), outage.begin()
    assert not outage.unheard(first)
    third = outage.begin()
    assert not outage.unheard(second)  # began with the first one
    assert not outage.unheard(third)
    fourth, fifth = outage.begin(), outage.begin()
    assert outage.unheard(fourth)
    assert outage.has_ended(fifth)
    assert outage.unheard(fifth)
    assert not outage.has_ended(outage.begin())


def test_a_reply_to_any_thread_ends_an_outage():
    outage = Outage()
    for _ in range(SILENT_CYCLES - 1):
        assert not outage.unheard(outage.begin())
    slow = outage.begin()
    outage.heard()
    assert not outage.unheard(slow)  # there was a reply meanwhile
    for _ in range(SILENT_CYCLES - 1):
        assert not outage.unheard(outage.begin())
    slow = outage.begin()
    assert outage.unheard(outage.begin())
    outage.heard()
    assert not outage.has_ended(slow)


def test_the_identity_is_name_and_address_without_secrets():
    settings = EndpointSettings("m", url="https://user:secret@host/v1", key=KEY)
    assert Endpoint(settings).identity == "openai:m at https://user@host/v1"


def test_an_address_where_nothing_listens_is_away():
    with EndpointServer.scripted([]) as server:
        pass
    with pytest.raises(NoReplyError, match="ConnectError"):
        ask(endpoint(server))


@pytest.mark.parametrize(("status", "remedy"), [(401, "key"), (403, "key"), (404, "/v1"), (400, "message"), (422, "")])
def test_a_refusal_of_the_settings_names_address_and_model_and_is_not_repeated(status, remedy):
    with EndpointServer.scripted([fails(status, message=f"wrong: {KEY}")]) as server:
        with pytest.raises(InputError) as end:
            ask(endpoint(server))
        assert len(server.requests) == 1
        said = str(end.value)
        assert server.url in said
        assert "'scripted'" in said
        assert remedy in said
        assert KEY not in said


@pytest.mark.parametrize(
    "refusal",
    [
        fails(400, code="context_length_exceeded"),
        fails(400, message="This model's maximum context length is 512 tokens"),
        fails(400, code="content_filter"),
        fails(413),
    ],
)
def test_a_chat_that_does_not_fit_is_no_fault_of_the_settings(refusal):
    with EndpointServer.scripted([refusal, says("fine")]) as server:
        asked = endpoint(server)
        with pytest.raises(NoReplyError) as end:
            ask(asked)
        assert (end.value.calls, end.value.final) == (1, True)
        assert ask(asked).text == "fine"


def test_a_model_that_refuses_a_parameter_is_asked_without_it(caplog):
    def refuses(parameter, code="unsupported_value"):
        return fails(400, code=code, param=parameter)

    acts = [refuses("max_tokens", "unsupported_parameter"), refuses("temperature"), says("fine"), says("fine")]
    with EndpointServer.scripted(acts) as server:
        asked = endpoint(server)
        assert ask(asked, temperature=0.7, max_tokens=5, seed=1).calls == 3
        assert ask(asked, temperature=0.7, max_tokens=5, seed=1).calls == 1
    wishes = {"model": "scripted", "messages": CHAT, "seed": 1, "max_completion_tokens": 5}
    assert [request["body"] for request in server.requests[2:]] == [wishes, wishes]
    assert "`temperature`" in caplog.text


@pytest.mark.parametrize("refusal", [fails(402), fails(429, code="insufficient_quota")])
def test_an_empty_account_ends_the_judging_at_once(refusal):
    with EndpointServer.scripted([refusal]) as server, pytest.raises(JudgeEndedError, match="top the account up"):
        ask(endpoint(server))


def test_a_redirect_is_not_followed():
    with EndpointServer.scripted([fails(307, location="/elsewhere")]) as server:
        with pytest.raises(InputError, match="307"):
            ask(endpoint(server))
        assert len(server.requests) == 1


def test_nothing_comes_from_the_environment(monkeypatch):
    foreign = "from-the-environment"
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", f"X-Foreign: {foreign}\nAuthorization: Bearer {foreign}")
    monkeypatch.setenv("OPENAI_BASE_URL", f"http://{foreign}.invalid")
    for name in ("API_KEY", "ADMIN_KEY", "ORG_ID", "PROJECT_ID", "WEBHOOK_SECRET"):
        monkeypatch.setenv(f"OPENAI_{name}", foreign)
    with EndpointServer(lambda _: says("fine")) as server:
        ask(endpoint(server))
        ask(endpoint(server, key=None))
    assert foreign not in str(server.requests)
    assert KEY not in str(server.requests[1])
    assert Endpoint(EndpointSettings("m"))._client.base_url == "https://api.openai.com/v1/"


def test_the_key_is_in_no_text_about_the_settings():
    settings = EndpointSettings("m", url="https://user:secret@host/v1", key=KEY)
    assert KEY not in repr(settings)
    assert settings.address == "https://user@host/v1"


@pytest.mark.parametrize(
    ("settings", "law"),
    [
        ({"model": ""}, "name of a model"),
        ({"url": "host/v1"}, "http://"),
        ({"key": "sk-\n"}, "printable"),
        ({"key": "sk ey"}, "printable"),
        ({"timeout_s": 0}, "timeout_s"),
        ({"timeout_s": float("nan")}, "timeout_s"),
        ({"concurrency": 0}, "concurrency"),
        ({"max_calls": -1}, "max_calls"),
    ],
)
def test_settings_out_of_range_are_refused(settings, law):
    with pytest.raises(InputError, match=law) as end:
        EndpointSettings(**({"model": "m"} | settings))
    assert "sk" not in str(end.value)


def test_no_more_requests_than_allowed_are_under_way_at_once():
    running, most, lock = 0, 0, threading.Lock()
    both = threading.Barrier(2)

    class Counted(EndpointServer):
        def act(self, body, headers, path):
            nonlocal running, most
            with lock:
                running += 1
                most = max(most, running)
            both.wait(30)  # every request meets another one
            with lock:
                running -= 1
            return says("fine")

    with Counted(lambda _: EMPTY) as server, ThreadPoolExecutor(6) as pool:
        asked = endpoint(server, concurrency=2)
        assert all(future.result().text == "fine" for future in [pool.submit(ask, asked) for _ in range(6)])
    assert most == 2


def test_a_closed_endpoint_sends_nothing():
    with EndpointServer(lambda _: says("fine")) as server:
        asked = endpoint(server)
        ask(asked)
        asked.close()
        with pytest.raises(JudgeEndedError, match="closed"):
            ask(asked)
        assert len(server.requests) == 1


def test_text_that_http_cannot_carry_is_sent_without_what_it_cannot():
    with EndpointServer.scripted([says("fine")]) as server:
        endpoint(server).complete([{"role": "user", "content": "a\ud800b {} é"}], temperature=0, max_tokens=1)
    assert server.requests[0]["body"]["messages"] == [{"role": "user", "content": "a?b {} é"}]


def test_the_error_survives_pickling():
    error = pickle.loads(pickle.dumps(NoReplyError("no reply", 8, final=True)))
    assert (str(error), error.calls, error.final) == ("no reply", 8, True)
