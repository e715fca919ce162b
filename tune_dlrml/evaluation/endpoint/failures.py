"""How one request, and one chat with all its requests, can fail."""

from tune_dlrml.errors import TuneDlrmlError


class NoReplyError(TuneDlrmlError):
    """One chat got no reply; others may get theirs.

    Attributes:
        calls: HTTP requests that were sent.
        final: Whether the endpoint will never reply to this chat, as it is too long. Otherwise requests failed.
    """

    def __init__(self, message: str, calls: int, *, final: bool = False) -> None:
        super().__init__(message, calls)
        self.calls, self.final = calls, final

    def __str__(self) -> str:
        return str(self.args[0])


class TransientError(TuneDlrmlError):
    """A request failed in a way that the same request may not fail in a moment later."""

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class UnreadableError(TransientError):
    """The server replies, and what it says is no completion."""


class UnfitError(TuneDlrmlError):
    """The endpoint will never answer this chat."""
