"""The final answer in the text of a reasoning model: its thoughts are cut, whatever marks them."""

import re

_NAMES = r"(?:think|thinking|thoughts?|reasoning|reflection|scratchpad|analysis|monologue|cot|chain_of_thought)"
_PREFIX = r"(?:[a-z]+[:_-])?"
_PAIRS = (
    (rf"<{_PREFIX}{_NAMES}(?:\s[^<>\n]*)?>", rf"</\s*{_PREFIX}{_NAMES}\s*>"),
    (r"<ant(?:thinking|ml:thinking)>", r"</ant(?:thinking|ml:thinking)>"),
    (r"(?-i:\[(?:THINK|THINKING|THOUGHT)\])", r"(?-i:\[/(?:THINK|THINKING|THOUGHT)\])"),
    (r"◁think▷", r"◁/think▷"),
    (r"<\|(?:begin_of_thought|start_thinking)\|>", r"<\|(?:end_of_thought|end_thinking)\|>"),
    (r"<\|(?:think|thinking|thought|reasoning)\|>", r"<\|/(?:think|thinking|thought|reasoning)\|>|<\|end\|>"),
    (r"<\|channel>\s*(?:thought|analysis)\b", r"<channel\|>"),
    (r"<unused94>", r"<unused95>"),
    (r"\A\s*Here is my thought process:", r"^Here is my response:"),
    (r"\A\s*Here are my reasoning steps:", r"\[BEGIN FINAL RESPONSE\]"),
)
"""What opens and closes a thought, kind by kind."""
_MARKERS = tuple(
    re.compile(f"(?P<open>{opening})|(?P<close>{closing})", re.IGNORECASE | re.MULTILINE) for opening, closing in _PAIRS
)
_MENTION = "`\"'“‘«「"
"""A marker right behind one of these is spoken of, not meant."""

_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)[^<]*(?:<\|constrain\|>[^<]*)?<\|message\|>")
_CHANNEL_END = re.compile(r"<\|(?:end|return|call|start)\|>")
_BARE_CHANNEL = re.compile(r"\A\s*analysis(?=[A-Z\n])")
_BARE_FINAL = re.compile(r"assistant\s*final")


def final_answer(words: str) -> str:
    """The words without thoughts; empty if a thought was opened but not closed.

    A template may open a thought in the prompt, so that only its end is here: all before that is thought. A marker that
    is spoken of, as in quotation marks or as a word of a sentence, is none.
    """
    words = _final_channel(words)
    for markers in _MARKERS:
        words = _without_thoughts(words, markers)
    return words


def _final_channel(words: str) -> str:
    """The text in the final channel of the Harmony format, also where its special tokens were removed."""
    channels = [match for match in _CHANNEL.finditer(words) if not _is_mention(words, match)]
    if channels:
        final = [match for match in channels if match[1] == "final"]
        return _CHANNEL_END.split(words[final[-1].end() :])[0] if final else ""
    if _BARE_CHANNEL.match(words):
        *_, final_start = [0, *(match.end() for match in _BARE_FINAL.finditer(words))]
        return words[final_start:] if final_start else ""
    return words


def _without_thoughts(words: str, markers: re.Pattern[str]) -> str:
    kept, behind = "", 0
    opened: re.Match[str] | None = None
    begin = end = None  # of the thought that is read; closed again, it goes on: thoughts speak of markers, too
    for match in markers.finditer(words):
        if _is_mention(words, match):
            continue
        if match["close"] is not None:
            begin, end = 0 if begin is None else begin, match.end()
        elif begin is None or (end is not None and _is_meant(words, match)):
            if begin is not None and end is not None:
                kept, behind = kept + words[behind:begin], end
            opened, begin, end = match, match.start(), None
    if begin is None:
        return words
    if end is not None:
        return kept + words[behind:begin] + words[end:]
    assert opened is not None
    return kept + words[behind : begin if _is_meant(words, opened) else None]


def _is_mention(words: str, match: re.Match[str]) -> bool:
    return match.start() > 0 and words[match.start() - 1] in _MENTION


def _is_meant(words: str, match: re.Match[str]) -> bool:
    """Whether an opening marker opens a thought for certain, and is no word in a sentence."""
    line = words[: match.start()].rpartition("\n")[2]
    behind = words[match.end() : match.end() + 1]
    return not line.strip() or (behind != "" and (behind == "\n" or behind.isalnum() or behind in "[("))
