"""Comparisons of two summaries as `openai/summarize-from-feedback` publishes them (arXiv 2009.01325), as pairs."""

from __future__ import annotations

from tune_dlrml.data.pairs import Fault

COLUMNS = {"info", "summaries", "choice"}
PROMPT = "SUBREDDIT: r/{subreddit}\n\nTITLE: {title}\n\nPOST: {post}\n\nTL;DR:"
"""What the paper's policies read of a post (its appendix B.4), and what trl-lib/tldr-preference has as prompts."""


def as_pair_columns(value: object) -> object:
    """A row with the columns prompt, chosen and rejected, if it is a comparison of two summaries of a post.

    Any other row, and one with a `chosen` of its own, is returned as it is; a comparison that is no pair as a `Fault`.
    """
    if not isinstance(value, dict) or not value.keys() >= COLUMNS or "chosen" in value:
        return value
    match value:
        case {
            "info": {"subreddit": str(subreddit), "title": str(title), "post": str(post)},
            "summaries": [{"text": str(first)}, {"text": str(second)}],
            "choice": 0 | 1 as choice,
        }:
            prompt = PROMPT.format(subreddit=subreddit, title=title, post=post)
            chosen, rejected = (second, first) if choice else (first, second)
            return {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    return Fault(
        "a comparison has `info` with subreddit, title and post, two `summaries` with a text each, and a `choice` of "
        "0 or 1; articles are no posts"
    )
