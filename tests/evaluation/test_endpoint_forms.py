"""The forms in which servers reply and refuse: read leniently where no verdict hangs on it."""

import json
from typing import Any

import pytest
from evaluation.endpoint_server import Act, EndpointServer, says

from tune_dlrml.errors import InputError
from tune_dlrml.evaluation.endpoint.client import UNREADABLE_TRIES, Endpoint, EndpointSettings, NoReplyError
from tune_dlrml.evaluation.judges.endpoint import EndpointJudge
from tune_dlrml.evaluation.records import Inquiry

MESSAGES = ({"role": "system", "content": "Judge."}, {"role": "user", "content": "How good is a carp?"})
INQUIRY = Inquiry("rating", "single-v1", MESSAGES, question_id=1, turn=1, quotable="a carp")
FINE = "It is fine. Rating: [[7]]"


def reply(message: dict[str, Any], *, reason: Any = "stop", **document: Any) -> Act:
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": reason}
    choice |= document.pop("choice", {})
    return Act("reply", json.dumps({"object": "chat.completion", "choices": [choice], **document}).encode())


def endpoint(server: EndpointServer) -> Endpoint:
    return Endpoint(EndpointSettings("scripted", url=server.url, timeout_s=30.0), sleep=lambda _: None)


@pytest.mark.parametrize(
    ("given", "tokens"),
    [
        (reply({"content": FINE}), None),
        (reply({"content": FINE}, usage={}), None),
        (reply({"content": FINE}, usage=None), None),
        (reply({"content": FINE}, usage=[]), None),
        (reply({"content": FINE}, usage={"total_tokens": None}), None),
        (reply({"content": FINE}, usage={"total_tokens": "14"}), None),
        (reply({"content": FINE}, usage={"prompt_tokens": 9}), None),
        (reply({"content": FINE}, usage={"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}), None),
        (reply({"content": FINE}, usage={"total_tokens": -1, "prompt_tokens": 9, "completion_tokens": 5}), 14),
        (reply({"content": FINE}, usage={"prompt_tokens": 9, "completion_tokens": 5}), 14),
        (reply({"content": FINE}, usage={"total_tokens": 21, "prompt_tokens": 9, "completion_tokens": 5}), 21),
        (reply({"content": FINE}, reason=None), None),
        (reply({"content": FINE}, reason="STOP"), None),
        (reply({"content": FINE}, reason="eos"), None),
        (reply({"content": FINE}, reason="end_turn"), None),
        (reply({"content": FINE, "refusal": None, "reasoning_content": "Perhaps [[2]]"}), None),
        (reply({"content": [{"type": "text", "text": FINE}]}), None),
        (reply({"content": ["It is fine. ", "Rating: [[7]]"]}), None),
        (
            reply({"content": [{"type": "text", "text": "Fine."}, {"type": "text", "text": " Rating: [[7]]"}]}),
            None,
        ),
        (reply({"content": [{"type": "thinking", "thinking": "[[2]]"}, {"type": "text", "text": FINE}]}), None),
        (reply({"content": [{"type": "reasoning", "text": "[[2]]"}, {"type": "output_text", "text": FINE}]}), None),
        (reply({"content": FINE}, choice={"logprobs": None}), None),
        (reply({"content": FINE}, choice={"logprobs": {"content": [{"token": "I", "top_logprobs": None}]}}), None),
        (reply({"content": FINE}, choice={"logprobs": {"content": None, "tokens": ["I"]}}), None),
        (reply({"content": FINE}, choice={"logprobs": "none"}), None),
        (reply({"content": f"<think>Perhaps [[2]]</think>{FINE}"}), None),
    ],
)
def test_a_verdict_is_read_whatever_stands_beside_it(given, tokens):
    with EndpointServer.scripted([given]) as server:
        asked = endpoint(server)
        judgement = EndpointJudge(asked).ask(INQUIRY)
    assert (judgement.verdict, judgement.calls) == (7.0, 1)
    assert (asked.budget.tokens == tokens, asked.budget.estimated) == ((True, False) if tokens else (False, True))


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (reply({"content": "First Rating: [[3]]"}, reason="length"), "cut off at 2048 tokens"),
        (reply({"content": "First Rating: [[3]]"}, reason="max_tokens"), "cut off at 2048 tokens"),
        (reply({"content": "First Rating: [[3]]"}, reason="model_length"), "cut off at 2048 tokens"),
        (reply({"content": "First Rating: [[3]]"}, reason="content_filter"), "ended by `content_filter`"),
        (reply({"content": "First Rating: [[3]]"}, reason="abort"), "ended by `abort`"),
        (reply({"content": "First Rating: [[3]]"}, reason="tool_calls"), "ended by `tool_calls`"),
        (reply({"content": None, "refusal": "I cannot. Rating: [[1]]"}), "a refusal"),
        (reply({"content": "Rating: [[1]]", "refusal": "I cannot."}), "a refusal"),
        (reply({"content": [{"type": "refusal", "refusal": "Rating: [[1]]"}]}), "a refusal"),
        (reply({"content": None, "reasoning_content": "Rating: [[3]]"}), "no verdict"),
        (reply({"content": [{"type": "thinking", "thinking": "Rating: [[3]]"}]}), "no verdict"),
        (reply({"content": ""}), "no verdict"),
    ],
)
def test_what_was_cut_off_refused_or_only_thought_is_no_verdict(given, reason):
    with EndpointServer.scripted([given] * 3) as server:
        judgement = EndpointJudge(endpoint(server)).ask(INQUIRY)
    assert (judgement.verdict, judgement.calls) == (None, 3)
    assert reason in judgement.words


@pytest.mark.parametrize(
    "body",
    [
        b"<html>Sign in to the network</html>",
        b'data: {"choices":[{"delta":{"content":"Rating: [[7]]"}}]}\n\ndata: [DONE]\n\n',
        b'{"error": {"message": "model overloaded", "code": 503}}',
        b'{"choices": []}',
        b'{"choices": [{"message": "Rating: [[7]]"}]}',
        b'{"choices": [{"message": {"content": {"text": "Rating: [[7]]"}}}]}',
        b"7",
    ],
)
def test_a_reply_without_a_completion_is_asked_for_a_few_times_and_shown(body):
    scripted = EndpointServer.scripted([Act("odd", body)] * UNREADABLE_TRIES)
    with scripted as server, pytest.raises(NoReplyError, match="no completion in a reply") as end:
        endpoint(server).complete(list(MESSAGES), temperature=0, max_tokens=9)
    assert end.value.calls == UNREADABLE_TRIES
    assert "overloaded" not in body.decode() or "overloaded" in str(end.value)


class Picky(EndpointServer):
    """Refuses every request that has what it does not take."""

    def __init__(self, has: str, status: int, document: Any) -> None:
        super().__init__(lambda _: says(FINE))
        self.has, self.refusal = has, Act("refusal", json.dumps(document).encode(), status)

    def act(self, body, headers, path):
        done = super().act(body, headers, path)
        roles = [message["role"] for message in body["messages"]]
        return self.refusal if self.has in body or self.has in roles else done


def openai_error(message: str, **more: Any) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": None} | more}


def fastapi(name: str, text: str) -> dict[str, Any]:
    return {"detail": [{"loc": ["body", name], "msg": text, "type": "value_error"}]}


REFUSALS = [
    ("max_tokens", 400, openai_error("Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.")),
    ("max_tokens", 400, openai_error("Not supported.", param="max_tokens", code="unsupported_parameter")),
    ("temperature", 400, openai_error("Only the default (1) value is supported for `temperature`.")),
    ("temperature", 400, openai_error("No.", param="temperature", code="unsupported_value")),
    ("temperature", 400, openai_error("litellm.UnsupportedParamsError: m does not take ['temperature']", param="None")),
    ("temperature", 422, fastapi("temperature", "ensure this value is greater than 0")),
    ("temperature", 422, {"error": "Input validation error: `temperature` must be strictly positive"}),
    ("temperature", 400, {"type": "error", "error": {"type": "invalid", "message": "temperature: is deprecated"}}),
    ("seed", 422, fastapi("seed", "Extra inputs are not permitted")),
    ("seed", 400, openai_error("Unrecognized request argument supplied: seed")),
    ("seed", 422, {"object": "error", "message": fastapi("seed", "Extra inputs are not permitted")}),
    ("seed", 400, [{"error": {"code": 400, "message": 'Unknown name "seed": Cannot find field.'}}]),
    ("seed", 422, {"detail": "seed is not a known setting"}),
    ("system", 400, {"object": "error", "message": "System role not supported", "code": 400}),
    (
        "system",
        400,
        openai_error("It does not support 'system' with this model.", param="messages[0].role"),
    ),
    ("system", 400, openai_error("Developer instruction is not enabled for this model")),
    ("system", 400, openai_error("Conversation roles must alternate user/assistant/user/assistant/...")),
    ("system", 500, openai_error("Jinja Exception: System role not supported")),
]


@pytest.mark.parametrize(("has", "status", "document"), REFUSALS)
def test_what_a_model_does_not_take_is_left_out_in_whatever_form_it_says_so(has, status, document):
    with Picky(has, status, document) as server:
        asked = endpoint(server)
        completions = [asked.complete(list(MESSAGES), temperature=0, max_tokens=9, seed=1) for _ in range(2)]
    assert [(each.text, each.calls) for each in completions] == [(FINE, 2), (FINE, 1)]
    sent = server.requests[-1]["body"]
    assert sent["max_completion_tokens" if has == "max_tokens" else "max_tokens"] == 9
    assert {"temperature", "seed"} - set(sent) == {has} & {"temperature", "seed"}
    told = "\n".join(message["content"] for message in sent["messages"])
    assert "Judge." in told and "How good is a carp?" in told


@pytest.mark.parametrize(
    ("status", "document", "said"),
    [
        (422, fastapi("messages", "too many"), "body.messages: too many"),
        (400, {"error": "no such adapter"}, "no such adapter"),
        (400, openai_error("the model is not loaded"), "the model is not loaded"),
        (422, {"detail": "go away"}, "go away"),
        (400, "plain words", "plain words"),
        (401, openai_error("temperature of the key"), "temperature of the key"),
    ],
)
def test_any_other_refusal_is_reported_in_the_servers_words(status, document, said):
    scripted = EndpointServer.scripted([Act("no", json.dumps(document).encode(), status)])
    with scripted as server, pytest.raises(InputError) as end:
        endpoint(server).complete(list(MESSAGES), temperature=0, max_tokens=9)
    assert said in str(end.value)


def test_a_setting_that_is_refused_even_when_left_out_is_reported():
    refusal = Act("no", json.dumps(openai_error("temperature must be 1")).encode(), 400)
    with EndpointServer.scripted([refusal] * 2) as server, pytest.raises(InputError, match="temperature must be 1"):
        endpoint(server).complete(list(MESSAGES), temperature=0, max_tokens=9)
