"""How judges write verdicts: in double brackets, as they are asked to, and in other forms that can only contradict."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

LOWEST, HIGHEST = 1.0, 10.0
LABEL_SPAN = 120
"""Characters before a verdict in which the word for it is looked for."""

Value = TypeVar("Value", float, Literal["A", "B", "tie"])

_NAME = (
    r"(?:(?<![a-z])(?:ratings?|scores?|grade|mark|verdict|decision|winner|judge?ment|evaluation|assessment|choice"
    r"|preference|conclusion|final answer|overall|total|bewertung|urteil|puntuaci[oó]n|calificaci[oó]n|valutazione"
    r"|punteggio|оценка)|评分|得分|分数|评级|评价|結論|结论|評価|スコア|評点|평점|점수)"
)
_GAP = r"[\s:：*_=|>~#$\"“'`–—→(-]*"
_LABEL = re.compile(
    rf"{_NAME}(?:\s*\([^()\n]{{0,40}}\))?[*_\"]*(?P<target>\s+(?:for|of)\s+[^.:\n\[\]]{{1,60}}?)?"
    rf"(?:\s+(?:is|as|of|at|would be|will be|remains|goes to))?(?:\s+(?:an?|now|thus|therefore|clearly))?{_GAP}\Z",
    re.IGNORECASE,
)
OWN_LABEL = re.compile(rf"(?:(?:my|final|overall)\s+)*(?:{_NAME}(?:\s+is)?[\s:*_=]*)?\Z", re.IGNORECASE)
_QUALIFIER = (
    r"(?:my|final|finally|overall|the|an?|total|own|this|its|our|numeric|numerical|revised|new|updated|single|whole|general"
    r"|average|combined|is|as|so|thus|therefore|hence|with|of|and|but|in|official|assistant['’]s|i)"
)
PLAIN_BEFORE = re.compile(rf"(?:\A|[^\w:\s][\s*_#]*|\n[\s*_#]*|\b{_QUALIFIER}\s+|{_NAME}\s*:[\s*_]*)\Z", re.IGNORECASE)
"""What stands before the word for a verdict on the whole, and not on one criterion."""
OPENS = re.compile(r"\A[\s*_#>`$({-]*\Z")
"""What may stand before a verdict that begins a line."""
ENDING = re.compile(r"[\s*_.!)\]}$\\`\"”|>#-]*(?:</\w+>\s*)*\Z")
"""What may stand behind a verdict that ends the words."""

_PAD = r"[\s*_`$\"]*"
_SCALED = r"(?:[\s*_\"`]{0,4}(?:/|out of)\s*(?P<scale>\d+))?"
_RATING = re.compile(
    rf"\[\s?\[{_PAD}(?P<label>{_NAME}\s*[:=]\s*)?\+?(?P<value>\d+(?:[.,]\d*)?)(?:\s*/\s*(?P<inner>\d+))?{_PAD}\]\s?\]"
    rf"{_SCALED}",
    re.IGNORECASE,
)
_PAIR = re.compile(
    rf"\[\s?\[{_PAD}(?P<label>(?i:{_NAME})\s*[:=]\s*)?(?:(?i:assistant|answer|response|model)\s+)?"
    rf"(?P<value>[ABCＡＢＣ]|(?i:tie|draw)){_PAD}\]\s?\]"
)
_WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBER = rf"(?P<{{0}}>\d+(?:[.,]\d+)?|{'|'.join(_WORDS)})(?![\w]|[.,]\d|\s*(?:-|–|to)\s*\d)"
_OTHER_GAP = rf"(?:\s*\([^()\n]{{0,40}}\))?(?:\s+(?:is|of|would be|will be|at|remains|as))?{_GAP}[\[{{\\$(]*"
_OTHER_RATING = re.compile(
    rf"{_NAME}{_OTHER_GAP}{_NUMBER.format('labelled')}(?:{_PAD}[\])}}]*{_PAD}(?:/|out of)\s*(?P<scale>\d+))?"
    rf"|\\boxed\{{\s*(?:\\text\{{)?[^{{}}\d]*{_NUMBER.format('boxed')}"
    r"|(?<![\w.,])(?P<of_ten>\d+(?:[.,]\d+)?)\s*(?:/|out of)\s*10[\s*_.!)]*\Z"
    rf"|{_NAME}{_OTHER_GAP}(?P<odd>\[\[[^\[\]\n]*\d[^\[\]\n]*\]\])",
    re.IGNORECASE,
)
_OTHER_PAIR = re.compile(
    rf"(?i:{_NAME}{_OTHER_GAP}(?:(?:the|assistant|answer|response|model)\s+)*)(?P<labelled>[ABC]|(?i:tie|draw))(?!\w)"
    r"|\\boxed\{\s*(?:\\text\{)?(?P<boxed>[ABC])\s*\}"
)
_LETTERS: dict[str, Literal["A", "B", "tie"]] = {"a": "A", "b": "B", "c": "tie", "tie": "tie", "draw": "tie"}


@dataclass(frozen=True)
class Form(Generic[Value]):
    """How one kind of verdict is written.

    Attributes:
        pattern: In double brackets; its groups `label` and `value` are read.
        read: The value of a match; None if it is out of range or on another scale.
        other: Labelled, in any other form.
        read_other: The value of such a match; None if it is none, which contradicts all.
    """

    pattern: re.Pattern[str]
    read: Callable[[re.Match[str]], Value | None]
    other: re.Pattern[str]
    read_other: Callable[[re.Match[str]], Any]

    def elsewhere(self, words: str, begin: int) -> Iterator[Value | None]:
        """The values of labelled verdicts in other forms."""
        for match in self.other.finditer(words, begin):
            yield self.read_other(match)


def label_before(before: str) -> re.Match[str] | None:
    """The word for a verdict at the end of what stands before it."""
    return _LABEL.search(before)


def _number(text: str) -> float:
    return (
        float(_WORDS.index(text.lower()) + 1) if text.lower() in _WORDS else float(text.rstrip(",.").replace(",", "."))
    )


def _rating_of(match: re.Match[str]) -> float | None:
    value = _number(match["value"])
    scales = {match["inner"], match["scale"]} - {None}
    return value if LOWEST <= value <= HIGHEST and all(float(scale) == HIGHEST for scale in scales) else None


def _other_rating(match: re.Match[str]) -> float | None:
    if match["odd"]:
        read = _RATING.fullmatch(match["odd"])
        return None if read is None else _rating_of(read)
    value = _number(match["labelled"] or match["boxed"] or match["of_ten"])
    return value * HIGHEST / float(match["scale"]) if match["scale"] and float(match["scale"]) else value


def _pair_of(match: re.Match[str]) -> Literal["A", "B", "tie"] | None:
    return _LETTERS[match["value"].translate(str.maketrans("ＡＢＣ", "ABC")).lower()]


def _other_pair(match: re.Match[str]) -> Literal["A", "B", "tie"]:
    return _LETTERS[(match["labelled"] or match["boxed"]).lower()]


RATING: Form[float] = Form(_RATING, _rating_of, _OTHER_RATING, _other_rating)
PAIR: Form[Literal["A", "B", "tie"]] = Form(_PAIR, _pair_of, _OTHER_PAIR, _other_pair)
