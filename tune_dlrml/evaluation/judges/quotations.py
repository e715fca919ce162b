"""What of a text is the writer's own: quotations, block quotes and code are hidden."""

import re
from collections.abc import Callable
from typing import Any

from tune_dlrml.evaluation.judges.verdict_forms import ENDING, LABEL_SPAN, Form, label_before

_FOREIGN = re.compile(
    r"""
      ^[ \t]*(?P<fence>```+|~~~+) [^`\n]* (?: \n .*? (?: ^[ \t]*(?P=fence) | \Z ) | \Z )  # a block of code
    | (?P<ticks>`+) (?!`) [^\n]+? (?<!`) (?P=ticks) (?!`)  # code in a line
    | ^[ ]{0,3}> [^\n]*                                     # a block quote
    | <blockquote> .*? (?: </blockquote> | \Z )
    | (?<![\w.,!?;)\]%°"]) " (?=\S) (?: [^"\n] | "(?=\w) | \n(?![ \t]*\n) )* (?: " | (?=\n) | \Z )  # no inch mark
    | “ .*? (?: ” | \n\s*\n | \Z )
    | „ .*? (?: [“”] | \n\s*\n | \Z )
    | « .*? (?: » | \n\s*\n | \Z )
    | 「 .*? (?: 」 | \n\s*\n | \Z )
    | ‘ [^\n]*? ’ (?!\w)
    | (?<!\w) ' (?=[\w\[]) (?: [^'\n] | (?<=\w) ' (?=\w) )* ' (?!\w)  # an apostrophe opens or closes nothing
    """,
    re.DOTALL | re.MULTILINE | re.VERBOSE,
)
_HIDDEN = " … "
_BEGINS = re.compile(r"(?:\A|[.!?)*_]\s|[^\s:,;…][ \t*_]*\n)[\s*_#-]*\Z")
_MARKS = re.compile(r"\A[\W_]*(?:text|markdown|plaintext)?(?=\n)|[`~]{3,}")
_SIGNS = str.maketrans(
    {**dict(zip("［］【】〔〕：，．／＋\u00a0", "[][][]:,./+ ", strict=True)), "⟦": "[[", "⟧": "]]"}
    | dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff", "")
)
_ESCAPED = re.compile(r"\\(?=[\[\]])")


def plain(words: str) -> str:
    """The words with full-width and escaped brackets as plain ones, and without what is not seen."""
    return _ESCAPED.sub("", words.translate(_SIGNS))


def own_words(words: str, is_new: Callable[[re.Match[str]], bool], form: Form[Any]) -> str:
    """The words without what they quote.

    A quotation of nothing but a verdict that is new, and that has its label before it or ends the words, is the
    writer's own: some put their verdicts in quotation marks.

    Args:
        words: Without thoughts.
        is_new: Whether a verdict is none that the writer may quote.
        form: Of verdicts.
    """

    def shown(match: re.Match[str]) -> str:
        inner = form.pattern.search(match[0])
        if inner is None or not is_new(inner):
            return _HIDDEN
        front, back = match[0][: inner.start()], match[0][inner.end() :]
        front = _MARKS.sub("", front).strip(" \n\t`~\"'“„«「‘>*_")
        bare = not front or (label_before(front) is not None and len(front.split()) <= 4)
        if not bare or re.sub(r"[\W_]", "", back):
            return _HIDDEN
        before = words[max(0, match.start() - LABEL_SPAN) : match.start()]
        ends = _BEGINS.search(before) is not None and ENDING.match(words, match.end()) is not None
        return f"{front} {inner[0]}" if ends or label_before(before) is not None else _HIDDEN

    return _FOREIGN.sub(shown, words)
