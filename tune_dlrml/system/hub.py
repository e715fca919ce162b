"""Names on the model hub, and requests to it that do not wait for a missing network."""

import re
from collections.abc import Callable

from tune_dlrml.errors import one_line
from tune_dlrml.system.deadline import answer_in_time

HUB_TIMEOUT_S = 3.0
HUB_DEADLINE_S = 4.0
HUB_ID = re.compile(r"(?P<id>\w[\w.-]{0,95}/\w[\w.-]{0,95})(?:@(?P<revision>\w[\w./-]*))?")
"""`org/name`, or `org/name@revision`, of a model or a data set."""


def refusal_in_time(ask: Callable[[], str | None]) -> str | None:
    """The result of `ask`: why the hub refuses something, or None; no answer in time is a refusal, too."""
    try:
        return answer_in_time(ask, HUB_DEADLINE_S)
    except TimeoutError as error:
        return f"the hub cannot be reached ({error})"


def refusal_of_model(model: str, revision: str | None) -> str | None:
    """Why this model cannot be loaded from the hub; None where it can."""
    from huggingface_hub import errors, model_info

    def ask() -> str | None:
        try:
            files = model_info(model, revision=revision, timeout=HUB_TIMEOUT_S).siblings or []
        except errors.RevisionNotFoundError:
            return f"the hub says that it has no revision {revision!r}"
        except errors.RepositoryNotFoundError:
            return "the hub says that no such model exists or that this account may not see it"
        except (errors.HTTPError, OSError, ValueError) as error:
            return f"the hub cannot be reached ({type(error).__name__}: {one_line(error)})"
        if not any(file.rfilename.endswith((".safetensors", ".safetensors.index.json")) for file in files):
            return "the hub holds no safetensors weights of it (pickle weights are refused: reading them can run code)"
        return None

    return refusal_in_time(ask)
