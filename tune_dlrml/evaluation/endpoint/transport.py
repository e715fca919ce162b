"""The client over which requests to an endpoint go."""

from typing import Any

import openai

from tune_dlrml.evaluation.endpoint.settings import OPENAI_URL, EndpointSettings

_HEADERS = frozenset(
    ["accept", "accept-encoding", "authorization", "connection", "content-length", "content-type", "host", "user-agent"]
)


def make_client(settings: EndpointSettings) -> openai.OpenAI:
    """A client that takes nothing from OPENAI_* variables: the command line alone reads the environment.

    Redirects are not followed, since each would be an uncounted request.
    """

    def leave_out_foreign_headers(request: Any) -> None:
        # OPENAI_CUSTOM_HEADERS has no argument that overrules it. The client finds its x-stainless-* ones again later.
        for name in {name.lower() for name in request.headers} - _HEADERS:
            if not name.startswith("x-stainless-"):
                del request.headers[name]

    key = settings.key or "none"
    return openai.OpenAI(
        base_url=settings.url or OPENAI_URL,
        api_key=key,
        admin_api_key="",
        organization="",
        project="",
        webhook_secret="",
        # Given outright, so that it stands above one from OPENAI_CUSTOM_HEADERS.
        default_headers={"Authorization": f"Bearer {key}"},
        max_retries=0,
        http_client=openai.DefaultHttpxClient(
            follow_redirects=False, event_hooks={"request": [leave_out_foreign_headers]}
        ),
    )
