"""The broker's address as Kombu wants it."""

from urllib.parse import parse_qs, quote, urlsplit


def kombu_url(redis_url: str) -> str:
    """Kombu has a name of its own for unix sockets, and wants the password before the path."""
    parts = urlsplit(redis_url)
    if parts.scheme != "unix":
        return redis_url
    password = parse_qs(parts.query).get("password", [""])[0]
    return f"redis+socket://:{quote(password, safe='')}@{parts.path}"
