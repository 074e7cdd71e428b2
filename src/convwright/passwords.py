"""Passwords out of what is recorded, printed or handed on: URLs of databases, and commands that name one.

A storage is given as a URL, ``postgresql://user:password@host/runs?sslpassword=...``. What is recorded is the URL
without them, which works where the password comes from ``PGPASSWORD`` or ``~/.pgpass``.
"""

from __future__ import annotations

import re
import shlex
from urllib.parse import unquote, unquote_plus

_LOGIN = re.compile(r"([^:/?@]*)(?::([^@]*))?@")  # as SQLAlchemy reads it: the password ends at the first @
_PLACE = re.compile(r"(?:\[[^/?@]+\]|[^/:?@]*)(?::\d*)?(?:/[^@]*)?")
_FILE = re.compile(r"/[^?]*")  # of a URL without a host
_SECRET = re.compile(r"(?:pass(?!file)|pwd?\b|secret|token)[^=]*=", re.IGNORECASE)  # wherever somebody may write it
HIDDEN = "***"


def public_url(url: str) -> str:
    """Return a URL without its passwords; of one that cannot be told apart, the scheme alone.

    Examples:
        >>> public_url("postgresql://me:secret@host:5432/runs?sslmode=require&password=secret")
        'postgresql://me@host:5432/runs?sslmode=require'
        >>> public_url("postgresql://me:p@ss@host/runs")
        'postgresql://***'
    """
    scheme, _, rest = url.partition("://")
    login = _LOGIN.match(rest)
    where, mark, query = rest[login.end() if login else 0 :].partition("?")
    place = _PLACE if login else _FILE if where.startswith("/") else _PLACE
    if not place.fullmatch(where) or _is_secret(where) or (login and login[2] is None and ":" in unquote(login[1])):
        return f"{scheme}://{HIDDEN}"
    kept = [each for each in query.split("&") if not _is_secret(each)]
    user = f"{login[1]}@" if login and login[1] else ""
    return f"{scheme}://{user}{where}" + (mark + "&".join(kept) if any(kept) else "")


def secrets_of(url: str) -> tuple[str, ...]:
    """Return the passwords in a URL, as they are written and decoded, the longest first."""
    rest = url.partition("://")[2]
    login = _LOGIN.match(rest)
    query = rest[login.end() if login else 0 :].partition("?")[2]
    written = [login[2] or ""] if login else []
    written += [each.partition("=")[2] for each in query.split("&") if _is_secret(each)]
    found = {form for each in written for form in (each, unquote(each), unquote_plus(each)) if form}
    return tuple(sorted(found, key=len, reverse=True))


def without(text: str, secrets: tuple[str, ...]) -> str:
    """Return a text, such as a driver's message, without these passwords."""
    for secret in secrets:
        text = text.replace(secret, HIDDEN)
    return text


def public_words(words: list[str]) -> str:
    """Return words of a command as they are typed, without the passwords of the URLs among them.

    Examples:
        >>> public_words(["optimize", "--storage=postgresql://me:a b@host/runs"])
        'optimize --storage=postgresql://me@host/runs'
    """
    return shlex.join(_public_word(word) for word in words)


def public_command(text: str) -> str:
    """Return a command, or a message that may repeat one's URL, without passwords."""
    try:
        words = shlex.split(text)
    except ValueError:
        words = []
    if words and shlex.join(words) == text:
        return public_words(words)
    return re.sub(r"""[\w+.-]+://[^\s'"]*[^\s'",.:;()]""", lambda found: public_url(found[0]), text)


def _public_word(word: str) -> str:
    option, sign, value = word.partition("=") if word.startswith("--") else ("", "", word)
    scheme = value.partition("://")[0]
    return option + sign + public_url(value) if "://" in value and re.fullmatch(r"[\w+.-]+", scheme) else word


def _is_secret(part: str) -> bool:
    return _SECRET.search(unquote_plus(part)) is not None
