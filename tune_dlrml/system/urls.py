"""Addresses of databases and servers, which may hold a password."""

import re
from urllib.parse import urlsplit

_PASSWORD_OPTION = re.compile(r"[^=]*password=", re.IGNORECASE)


def without_password(url: str) -> str:
    """The URL without a password, which can be shown, stored, and used with a password from elsewhere."""
    scheme, separator, rest = url.partition("://")
    password = _password_of_user(scheme, rest)
    if password is not None:
        rest = rest.replace(f":{password}@", "@", 1)
    address, mark, query = rest.partition("?")
    kept = [option for option in query.split("&") if not _PASSWORD_OPTION.match(option)]
    return scheme + separator + address + (mark + "&".join(kept) if "".join(kept) else "")


def is_plain(url: str) -> bool:
    """Whether the address of a web server holds nothing that may be a secret."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    secretive = "@" in parts.netloc or parts.query or parts.fragment
    return parts.scheme in ("http", "https") and bool(parts.hostname) and not secretive


def passwords_in(url: str) -> list[str]:
    """The passwords in a URL, as written there: the user's, and those among its options."""
    scheme, _, rest = url.partition("://")
    options = [option for option in rest.partition("?")[2].split("&") if _PASSWORD_OPTION.match(option)]
    found = [_password_of_user(scheme, rest), *(option.partition("=")[2].partition("#")[0] for option in options)]
    return [password for password in found if password]


def _password_of_user(scheme: str, rest: str) -> str | None:
    """The text between the user and the host; None where there is none."""
    # A password that was not escaped may hold any character. An @ after a server's port, or in a query, is not its end.
    if scheme.startswith("http") and re.match(r"[^@/?#]*:\d+(?:[/?#]|$)", rest):
        return None
    before_query = rest.partition("?")[0]
    found = re.match(r"[^:/?#@]*:(.*)@", before_query if "@" in before_query else rest)
    return None if found is None else found[1]
