"""The verdict in a judge's own words.

Judges think before they answer, explain themselves before they decide, and quote what they judge, which may hold a
verdict on itself. So thoughts are cut, and what stands in code, in a block quote or between quotation marks is not the
judge's own, unless it is a verdict that the judge was not shown and that ends the reply or has its label before the
quotation. Of the rest the last verdict counts that is labelled as one, as in `Rating: [[7]]`, or that ends the reply or
has a line of its own. There is none if the judge may only quote it, or contradicts it: with another verdict after it,
with a labelled number in another form, or with other criteria of equal rank. Then the judge can be asked again.
"""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Generic, Literal, NamedTuple, TypeVar

from tune_dlrml.evaluation.judges.quotations import own_words, plain
from tune_dlrml.evaluation.judges.thoughts import final_answer
from tune_dlrml.evaluation.judges.verdict_forms import (
    ENDING,
    HIGHEST,
    LABEL_SPAN,
    LOWEST,
    OPENS,
    OWN_LABEL,
    PAIR,
    PLAIN_BEFORE,
    RATING,
    Form,
    label_before,
)

ECHO_WORDS = 2
"""So many words before a verdict as before the same verdict in what was shown mean that the judge copies it."""

PairVerdict = Literal["A", "B", "tie"]
Value = TypeVar("Value", float, PairVerdict)

_NOTHING = re.compile(r"[\s*_.!)\]]*\Z")
_SENTENCE_START = re.compile(r"(?:\A|[.!?)]|[^\s:,;…][ \t*_]*\n)[\s*_#-]*\Z")
_SENTENCE_END = re.compile(r"[.!?]\s|\n\s*\n")
_DOUBT = re.compile(
    r"\b(?:not|never|cannot|neither|nor|unless|if|would|could|needs?|scale|range|maximum|highest|top|perfect|claims"
    r"|says|asks|wants|for example|for instance|such as|format|between|from|instead|than)\b|n['’]t\b",
    re.IGNORECASE,
)
_PASSED_OVER = re.compile(
    r"(?:\b(?:than|not|never|nor|beats|over|instead of|rather than|against|up to)|n['’]t)"
    r"(?:\s+(?:an?|the|assistant|answer|response|model))*[\s*_(]*\Z",
    re.IGNORECASE,
)
_JOINT = re.compile(
    r"[^\w\[\]]*(?:(?:to|or|and|vs|versus|through|up|than|is|better|beats|over)\b[^\w\[\]]*)*\Z", re.IGNORECASE
)
_OWN_ACT = re.compile(
    r"(?:\b(?:I|we)\b(?:['’](?:d|ll|ve))?[^.!?\n]{0,40}?"
    r"\b(?:rate|rated|give|gave|given|assign|award|score|choose|pick|prefer|vote|select|favou?r|go with)\b"
    r"|\b(?:deserves|merits|earns|gets|receives|warrants|is rated|be rated|is scored)\b)"
    r"(?P<object>[^.!?\n\[\]]{0,60})\Z",
    re.IGNORECASE,
)
_EXAMPLE = re.compile(
    r"(?:\be\.g\.|\bfor example|\bfor instance|\bsuch as|\bas in|\bformat\b|\blike)[^.\n]{0,20}\Z", re.I
)
_ASPECT = re.compile(
    r"(?:^|[.;,|\n])[ \t*_#\d.)-]*(?!mine\b)[^\W\d][\w '/&-]{0,40}(?:\([^()\n]*\))?[\s*_]*[:=][\s*_]*\Z", re.I
)


@dataclass(frozen=True)
class _Found(Generic[Value]):
    """A verdict in a judge's own words.

    Attributes:
        start, end: Where it stands.
        shown: Whether the judge was shown the same one, so that it may only quote it. Then it counts only as a labelled
            sentence of its own at the end, with other words before it than where it was shown.
        labelled: Whether a word such as `Rating:` or an act such as `I give` says that it is one.
        decisive: Whether it has the form of a verdict: labelled, at the end of the words or on a line of its own.
        aspect: Whether its label is that of one criterion among others.
    """

    value: Value
    start: int
    end: int
    shown: bool
    labelled: bool
    decisive: bool
    aspect: bool


class _Joined(NamedTuple):
    """Where verdicts stand that are joined with others: as the ends of the scale, or in lists as `[[A]] or [[B]]`."""

    scale: set[int]
    lists: set[int]


def rating(words: str, shown: str = "") -> float | None:
    """The judge's rating from 1 to 10; None if there is none, or if it may be a quotation or is contradicted.

    It is written `[[x]]`. Whatever else stands in double brackets is passed over: `[[11]]`, `[[0]]`, `[[NaN]]`.

    Args:
        words: The judge's reply.
        shown: What it judges: question, answers and references.
    """
    return _verdict(words, shown, RATING)


def pair_verdict(words: str, shown: str = "") -> PairVerdict | None:
    """The same for the last of `[[A]]`, `[[B]]` and `[[C]]`, where C is a tie."""
    return _verdict(words, shown, PAIR)


def _verdict(words: str, shown: str, form: Form[Value]) -> Value | None:
    shown = plain(shown)
    known: set[Value] = {value for match in form.pattern.finditer(shown) if (value := form.read(match)) is not None}
    own = own_words(plain(final_answer(words)), lambda match: form.read(match) not in (None, *known), form)
    matches = [match for match in form.pattern.finditer(own) if form.read(match) is not None]
    joined = _joined(own, matches, form)
    found: list[_Found[Value]] = []
    for match in matches:
        value = form.read(match)
        if value is None or match.start() in joined.scale or _PASSED_OVER.search(own[_span(match) : match.start()]):
            continue
        each = _found(own, match, value, shown, is_known=value in known, tempted=bool(known))
        in_list = match.start() in joined.lists
        found.append(replace(each, labelled=False, decisive=False, aspect=False) if in_list else each)
    chosen = _decided(own, found, bool(known))
    return None if chosen is None or _is_contradicted(own, chosen, form) else chosen.value


def _found(own: str, match: re.Match[str], value: Value, shown: str, *, is_known: bool, tempted: bool) -> _Found[Value]:
    before = own[_span(match) : match.start()]
    label = label_before(before)
    labelled = label is not None or match["label"] is not None
    aspect = label is None and _ASPECT.search(before) is not None
    if label is not None:
        aspect = bool(label["target"]) or not PLAIN_BEFORE.search(before[: label.start()])
        labelled = _EXAMPLE.search(before[: label.start()]) is None
    if not labelled and not tempted and (act := _OWN_ACT.search(before)) is not None:
        labelled = _DOUBT.search(act["object"]) is None and re.search(r"\bnot\b|n['’]t\b|\bcannot\b", act[0]) is None
    decisive = _is_sure(own, match, shown) if is_known else labelled or _is_placed(own, match)
    return _Found(value, match.start(), match.end(), is_known, labelled, decisive, aspect)


def _joined(own: str, matches: Sequence[re.Match[str]], form: Form[Value]) -> _Joined:
    joined = _Joined(set(), set())
    for first, second in itertools.pairwise(matches):
        ends = (form.read(first), form.read(second))
        if ends[0] != ends[1] and _JOINT.fullmatch(own[first.end() : second.start()]):
            places = joined.scale if ends == (LOWEST, HIGHEST) else joined.lists
            places |= {first.start(), second.start()}
    return joined


def _decided(own: str, found: Sequence[_Found[Value]], tempted: bool) -> _Found[Value] | None:
    """The verdict that counts; None where none does.

    Args:
        own: The judge's own words.
        found: The verdicts in them, in their order.
        tempted: Whether the judge was shown any verdict.
    """
    places = [place for place, each in enumerate(found) if each.decisive]
    if not places:
        alone = len({each.value for each in found}) == 1 and not tempted
        return found[-1] if alone and not any(_is_doubtful(own, each) for each in found) else None
    last = found[places[-1]]
    # Against it speak an opinion of the judge's own behind it and, if it may be a quotation, any other verdict.
    rivals = [each for each in found[places[-1] + 1 :] if not each.shown]
    if last.shown:
        rivals += [each for each in found if each.decisive]
    if last.aspect:
        rivals += [each for each in found if each.aspect]
    return last if all(rival.value == last.value for rival in rivals) else None


def _is_contradicted(own: str, chosen: _Found[Value], form: Form[Value]) -> bool:
    """Whether a labelled verdict in another form says another thing: behind it, or anywhere if it has no label."""
    others = form.elsewhere(own, chosen.end if chosen.labelled else 0)
    return any(value != chosen.value for value in others)


def _span(match: re.Match[str]) -> int:
    return max(0, match.start() - LABEL_SPAN)


def _is_placed(own: str, match: re.Match[str]) -> bool:
    """Whether a verdict that was not shown stands where verdicts stand: at the end, or on a line of its own."""
    if OPENS.search(own[: match.start()].rpartition("\n")[2]):
        line = own[match.end() :].partition("\n")[0]
        if ENDING.match(line) or not own[: match.start()].strip(" \n*_#>"):
            return True
    return ENDING.match(own, match.end()) is not None and not _is_doubtful(own, match)


def _is_doubtful(own: str, at: "re.Match[str] | _Found[Value]") -> bool:
    """Whether its sentence may say something else than that this is the verdict."""
    start, end = (at.start, at.end) if isinstance(at, _Found) else at.span()
    before = _SENTENCE_END.split(own[max(0, start - 4 * LABEL_SPAN) : start])[-1]
    behind = _SENTENCE_END.split(own[end : end + LABEL_SPAN])[0]
    return _DOUBT.search(before) is not None or _DOUBT.search(behind) is not None


def _is_sure(words: str, match: re.Match[str], shown: str) -> bool:
    """Whether a verdict that was shown to the judge is its own nevertheless."""
    label = OWN_LABEL.search(words, _span(match), match.start())
    start = match.start() if label is None else label.start()
    begins = _SENTENCE_START.search(words, max(0, start - LABEL_SPAN), start) is not None
    if not begins or not _NOTHING.match(words, match.end()):
        return False
    before = words[:start].split()[-ECHO_WORDS:]
    echo = " ".join([*before, *words[start : match.end()].split()])
    return len(before) < ECHO_WORDS or echo not in " ".join(shown.split())
