"""The verdict in a judge's own words.

Judges explain themselves before they decide, and quote what they judge, which may hold a verdict on itself. So what
stands in a thought, in code, in a block quote or between quotation marks is not the judge's own. Of the rest the last
verdict counts, unless it may be one that the judge only tells of; then there is none, and the judge can be asked again.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

LOWEST, HIGHEST = 1.0, 10.0
ECHO_WORDS = 2
"""So many words before a verdict as before the same verdict in what was shown mean that the judge copies it."""
LABEL_SPAN = 80
"""Characters before a verdict in which the word for it is looked for."""

PairVerdict = Literal["A", "B", "tie"]
Value = TypeVar("Value", float, PairVerdict)

_RATING = re.compile(r"\[\[\s*([0-9]+(?:\.[0-9]+)?)\s*\]\]")
_PAIR = re.compile(r"\[\[\s*([ABC])\s*\]\]")
_PAIR_VERDICTS: dict[str, PairVerdict] = {"A": "A", "B": "B", "C": "tie"}

_THOUGHT = re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL)
_FOREIGN = re.compile(
    r"""
      ^[ \t]*(?P<fence>```+|~~~+) [^`\n]* (?: \n .*? (?: ^[ \t]*(?P=fence) | \Z ) | \Z )  # a block of code
    | (?P<ticks>`+) (?!`) [^\n]+? (?<!`) (?P=ticks) (?!`)  # code in a line
    | ^[ ]{0,3}> [^\n]*                                     # a block quote
    | <blockquote> .*? (?: </blockquote> | \Z )
    | “ .*? (?: ” | \n\s*\n | \Z )
    | „ .*? (?: [“”] | \n\s*\n | \Z )
    | « .*? (?: » | \n\s*\n | \Z )
    | 「 .*? (?: 」 | \n\s*\n | \Z )
    | ‘ [^\n]*? ’ (?!\w)
    | (?<!\w) ' (?=[\w\[]) (?: [^'\n] | (?<=\w) ' (?=\w) )* ' (?!\w)  # an apostrophe opens or closes nothing
    """,
    re.DOTALL | re.MULTILINE | re.VERBOSE,
)
_QUOTED = re.compile(r'"[^"]*"')
_UNCLOSED = re.compile(r'".*\Z', re.DOTALL)
_HIDDEN = " … "

_NAME = r"(?:rating|score|grade|verdict|decision|winner|judge?ment)"
_LABEL = re.compile(rf"\b{_NAME}(?:\s+(?:is|of))?[\s:*_=]*\Z", re.IGNORECASE)
_OWN_LABEL = re.compile(rf"(?:(?:my|final|overall)\s+)*(?:{_NAME}(?:\s+is)?[\s:*_=]*)?\Z", re.IGNORECASE)
_SENTENCE_START = re.compile(r"(?:\A|[.!?)]|[^\s:,;…][ \t*_]*\n)[\s*_#-]*\Z")
_NOTHING = re.compile(r"[\s*_.!)\]]*\Z")


@dataclass(frozen=True)
class _Found(Generic[Value]):
    """A verdict in a judge's own words.

    Attributes:
        shown: Whether the judge was shown the same one, so that it may only tell of it.
        decisive: Whether it has the form of a verdict: behind a word such as `Rating:`, or at the end of the words.
            One that was shown needs both, a sentence of its own, and other words before it than where it was shown.
    """

    value: Value
    shown: bool
    decisive: bool


def rating(words: str, shown: str = "") -> float | None:
    """The judge's rating from 1 to 10; None if there is none, or if it may be a quotation.

    It is the last `[[x]]` in the form of a verdict: as in `Rating: [[7]]`, or at the end of the words. Where nothing
    has that form, it is the last one at all, if no rating was shown to the judge. Whatever else stands in double
    brackets is passed over: `[[11]]`, `[[0]]`, `[[NaN]]`, `[[8/10]]`.

    Args:
        words: The judge's reply.
        shown: What it judges.
    """
    return _verdict(words, shown, _RATING, _rating_of)


def pair_verdict(words: str, shown: str = "") -> PairVerdict | None:
    """The same for the last of `[[A]]`, `[[B]]` and `[[C]]`, where C is a tie."""
    return _verdict(words, shown, _PAIR, _PAIR_VERDICTS.get)


def _rating_of(digits: str) -> float | None:
    return x if LOWEST <= (x := float(digits)) <= HIGHEST else None


def _verdict(words: str, shown: str, form: re.Pattern[str], read: Callable[[str], Value | None]) -> Value | None:
    known = {read(text) for text in form.findall(shown)} - {None}
    own = _own(words)
    found: list[_Found[Value]] = []
    for match in form.finditer(own):
        value = read(match[1])
        if value is not None:
            decisive = _is_sure(own, match, shown) if value in known else _is_decisive(own, match)
            found.append(_Found(value, value in known, decisive))
    return _decided(found, bool(known))


def _decided(found: Sequence[_Found[Value]], tempted: bool) -> Value | None:
    """The verdict that counts; None where none does.

    Args:
        found: In the order of the words.
        tempted: Whether the judge was shown any verdict.
    """
    places = [place for place, each in enumerate(found) if each.decisive]
    if not places:
        return found[-1].value if found and not tempted else None
    last = found[places[-1]]
    # Against it speak an opinion of the judge's own behind it and, if it may be a quotation, any other verdict.
    rivals = [each for each in found[places[-1] + 1 :] if not each.shown]
    if last.shown:
        rivals += [each for each in found if each.decisive]
    return last.value if all(rival.value == last.value for rival in rivals) else None


def _is_decisive(words: str, match: re.Match[str]) -> bool:
    before = max(0, match.start() - LABEL_SPAN)
    return bool(_LABEL.search(words, before, match.start()) or _NOTHING.match(words, match.end()))


def _is_sure(words: str, match: re.Match[str], shown: str) -> bool:
    """Whether a verdict that was shown to the judge is its own nevertheless."""
    label = _OWN_LABEL.search(words, max(0, match.start() - LABEL_SPAN), match.start())
    start = match.start() if label is None else label.start()
    begins = _SENTENCE_START.search(words, max(0, start - LABEL_SPAN), start) is not None
    if not begins or not _NOTHING.match(words, match.end()):
        return False
    before = words[:start].split()[-ECHO_WORDS:]
    echo = " ".join([*before, *words[start : match.end()].split()])
    return len(before) < ECHO_WORDS or echo not in " ".join(shown.split())


def _own(words: str) -> str:
    """The words without what is not the judge's own; where a quotation may have no end, its paragraph goes on."""
    said = _FOREIGN.sub(_HIDDEN, _said(words))
    if said.count('"') % 2 == 0:
        return _QUOTED.sub(_HIDDEN, said)
    paragraphs = (
        _QUOTED.sub(_HIDDEN, each) if each.count('"') % 2 == 0 else _UNCLOSED.sub(_HIDDEN, each)
        for each in re.split(r"\n\s*\n", said)
    )
    return "\n\n".join(paragraphs)


def _said(words: str) -> str:
    """The words without thoughts; some chat templates open a thought in the prompt, so that it has an end only."""
    behind = words.rpartition("</think>")[2] if "<think>" not in words else words
    return _THOUGHT.sub("", behind)
