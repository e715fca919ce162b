"""What a server says when it refuses a request, and which settings it will not take."""

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

LONGEST = 300
SYSTEM = "system"
"""The role of a message, which some models do not have."""
DISPENSABLE = ("max_tokens", "temperature", "seed")
"""Settings that a request can be sent without; a limit has a second name."""
_NO_SYSTEM = re.compile(
    r"\b(?:system|developer)['\"`]?\s+(?:role|message|prompt|instruction)s?\b[^.]*\b(?:not|un\w+|only)\b"
    r"|\b(?:not|n['’]t|un\w+)\b[^.]*\bsystem['\"`]?\s*(?:role|message|prompt|instruction|with|\Z)"
    r"|roles must alternate",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Refusal:
    """What a server said.

    Attributes:
        text: In one line.
        code: Of the error, if it has one that is a word.
        parameters: Named as such, apart from the text.
    """

    text: str
    code: str
    parameters: frozenset[str]

    def unwanted(self, request: Mapping[str, Any], without: Collection[str]) -> frozenset[str]:
        """The settings of a request that it is about and that can be left out.

        Args:
            request: As it was to be sent.
            without: Settings that were left out of it already.
        """
        named = {name for name in DISPENSABLE if name in self.parameters or re.search(rf"\b{name}\b", self.text)}
        has_system = any(message["role"] == SYSTEM for message in request["messages"])
        if has_system and (_NO_SYSTEM.search(self.text) or "messages[0].role" in self.parameters):
            named.add(SYSTEM)
        return frozenset(name for name in named - set(without) if name == SYSTEM or name in request)


def read_refusal(body: bytes, key: str | None) -> Refusal:
    """What the body of a reply says, short and without the key, which some servers repeat."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        document = body.decode("utf-8", "replace")
    parameters: set[str] = set()
    codes: list[str] = []
    text = "; ".join(_texts(document, parameters, codes)) or body.decode("utf-8", "replace")
    return Refusal(_one_line(text, key), codes[0] if codes else "", frozenset(parameters))


def folded(messages: list[dict[str, str]]) -> list[dict[str, str]]:
    """The chat with the system messages at the head of the first user message."""
    system = [message["content"] for message in messages if message["role"] == SYSTEM]
    rest = [dict(message) for message in messages if message["role"] != SYSTEM]
    if system and rest:
        rest[0]["content"] = "\n\n".join([*system, rest[0]["content"]])
    return rest


def _texts(part: Any, parameters: set[str], codes: list[str]) -> list[str]:
    """The sentences in any of the documents that servers send; what they name on the way is collected."""
    if isinstance(part, str):
        return [part] if part.strip() else []
    if isinstance(part, list):
        return [text for each in part for text in _texts(each, parameters, codes)]
    if not isinstance(part, dict):
        return []
    if isinstance(part.get("param"), str):
        parameters.add(part["param"])
    if isinstance(part.get("code"), str):
        codes.append(part["code"])
    place = part.get("loc")
    if isinstance(place, list):
        parameters |= {str(name) for name in place}
    texts = [
        text for name in ("error", "message", "detail", "msg") for text in _texts(part.get(name), parameters, codes)
    ]
    where = ".".join(map(str, place)) if isinstance(place, list) else ""
    return [f"{where}: {text}" if where else text for text in texts]


def _one_line(text: str, key: str | None) -> str:
    return " ".join((text.replace(key, "***") if key else text).split())[:LONGEST]
