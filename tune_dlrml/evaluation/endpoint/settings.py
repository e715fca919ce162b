"""Where an OpenAI-compatible endpoint is, and how much of it may be used."""

from dataclasses import dataclass, field
from pathlib import Path

from tune_dlrml.errors import InputError
from tune_dlrml.system.urls import without_password

OPENAI_URL = "https://api.openai.com/v1"


@dataclass(frozen=True)
class EndpointSettings:
    """Where an endpoint is, and how much of it may be used.

    Attributes:
        model: As the endpoint calls it.
        url: Base address, mostly ending in `/v1`; None is OpenAI's own.
        key: Sent to the endpoint and shown nowhere; None for an endpoint that asks for none.
        timeout_s: Of one request, from its sending to the last byte of the reply.
        deadline_s: From the first request to the moment after which none is sent.
        concurrency: Requests at the same time.
        max_calls: HTTP requests of the `Endpoint`, failed ones included.
        max_tokens: Tokens of prompts and replies, as the endpoint counts them: no request is sent once they are used.

    Raises:
        InputError: A value is out of range.
    """

    model: str
    url: str | None = None
    key: str | None = field(default=None, repr=False)
    timeout_s: float = 120.0
    deadline_s: float = 3600.0
    concurrency: int = 8
    max_calls: int = 5_000
    max_tokens: int = 10_000_000

    def __post_init__(self) -> None:
        if not self.model:
            raise InputError("an endpoint needs the name of a model: give it as in `openai:<model>`")
        if self.url is not None and not self.url.startswith(("http://", "https://")):
            raise InputError(
                f"the address of an endpoint begins with http:// or https://, but got {without_password(self.url)!r}"
            )
        if self.key is not None and not (self.key.isascii() and self.key.isprintable() and " " not in self.key):
            raise InputError("the key of an endpoint is printable ASCII without spaces: check the file that holds it")
        for name in ("timeout_s", "deadline_s", "concurrency", "max_calls", "max_tokens"):
            if not getattr(self, name) > 0:
                raise InputError(f"`{name}` of an endpoint must be above 0, but got {getattr(self, name)}")

    @property
    def address(self) -> str:
        """The URL, fit to be shown."""
        return without_password(self.url or OPENAI_URL)


def read_key(path: str) -> str:
    """The key of an endpoint from its file.

    Raises:
        InputError: The file cannot be read, or holds no key.
    """
    try:
        key = Path(path).expanduser().read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: the key of an endpoint must be readable there, but {error}") from None
    if not key or len(key.split()) > 1:
        raise InputError(f"{path}: one key and nothing else is needed, but got {len(key.split())} words")
    return key
