"""MLflow's limits: lengths of keys and texts, and the number of them per call. A cut text ends with a mark."""

import hashlib
from collections.abc import Iterator, Mapping

KEY_LENGTH = 250
"""Of a param, a metric or a tag."""
PARAM_LENGTH = 6000
TAG_LENGTH = 5000
PARAMS_A_CALL = 100
METRICS_A_CALL = 1000


def short_key(key: str) -> str:
    """A key within MLflow's limit; a longer one ends with a hash of all of it, so that keys stay distinct."""
    key = _storable(key)
    if len(key) <= KEY_LENGTH:
        return key
    mark = f"...{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    return key[: KEY_LENGTH - len(mark)] + mark


def short_text(text: str, limit: int) -> str:
    """A text within MLflow's limit; a longer one ends with a mark and its original length."""
    text = _storable(text)
    if len(text) <= limit:
        return text
    mark = f"... [cut from {len(text)} characters]"
    return text[: limit - len(mark)] + mark


def param_calls(params: Mapping[str, object]) -> Iterator[dict[str, str]]:
    """Params within MLflow's limits, split into calls."""
    short = [(short_key(key), short_text(str(value), PARAM_LENGTH)) for key, value in params.items()]
    for first in range(0, len(short), PARAMS_A_CALL):
        yield dict(short[first : first + PARAMS_A_CALL])


def _storable(text: str) -> str:
    """A text that databases can store: PostgreSQL refuses NUL, and half a surrogate pair has no UTF-8."""
    return text.replace("\0", "").encode(errors="replace").decode()
