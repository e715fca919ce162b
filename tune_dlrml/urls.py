"""Addresses of databases and servers, which may hold a password."""

import re


def without_password(url: str) -> str:
    """The URL without a password in it: fit to be shown, kept and used by whoever has the password from elsewhere."""
    scheme, separator, rest = url.partition("://")
    # A password that was not escaped may hold any character. Behind a server's port there may be an @, too.
    if not (scheme.startswith("http") and re.match(r"[^@/?#]*:\d+(?:[/?#]|$)", rest)):
        rest = re.sub(r"^([^:/?#@]*):.*@", r"\1@", rest)
    address, mark, query = rest.partition("?")
    kept = [option for option in query.split("&") if not re.match(r"[^=]*password=", option, re.IGNORECASE)]
    return scheme + separator + address + (mark + "&".join(kept) if "".join(kept) else "")
