"""Addresses of databases and servers, which may hold a password."""

import re


def without_password(url: str) -> str:
    """The URL without a password in it: fit to be shown, kept and used by whoever has the password from elsewhere."""
    # Greedy, since a password that was not escaped may hold an @; a host cannot.
    bare = re.sub(r"(?<=://)([^:/?#@]*):[^/?#]*@", r"\1@", url)
    bare = re.sub(r"([?&])password=[^&#]*", r"\1", bare)
    return re.sub(r"\?&+", "?", re.sub(r"[?&]+(?=$|#)", "", bare))
