"""Addresses of databases and servers, which may hold a password."""

import re


def without_password(url: str) -> str:
    """The URL without a password in it: fit to be shown, kept and used by whoever has the password from elsewhere."""
    scheme, separator, rest = url.partition("://")
    # A password that was not escaped may hold any character. Behind a server's port, or in a query, is an @ of its own.
    if not (scheme.startswith("http") and re.match(r"[^@/?#]*:\d+(?:[/?#]|$)", rest)):
        before_query = rest.partition("?")[0]
        holder = before_query if "@" in before_query else rest
        rest = re.sub(r"^([^:/?#@]*):.*@", r"\1@", holder) + rest.removeprefix(holder)
    address, mark, query = rest.partition("?")
    kept = [option for option in query.split("&") if not re.match(r"[^=]*password=", option, re.IGNORECASE)]
    return scheme + separator + address + (mark + "&".join(kept) if "".join(kept) else "")
