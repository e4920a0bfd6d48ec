"""Secrets kept out of what is written: of values whose names say so, and of addresses with a password in them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

HIDDEN = "***"
"""In place of a secret."""

SHORTEST = 6
"""Characters of a secret that is looked for in running text; a shorter one is a part of ordinary words."""

_WORDS = {"token", "key", "apikey", "secret"}
_ENDINGS = ("password", "passwd", "credential", "credentials", "authorization")
"""Last words of the names of secrets; the latter also as an end of one (PGPASSWORD)."""
_LOGIN = re.compile(r"(?<=://)[^/@\s:]*:[^/@\s]+(?=@)")
_INLINE = re.compile(r"""([\w.-]+)(["']?\s*[:=]\s*)("[^"]*"|'[^']*'|[^\s,{}&]+)""")
_PLAIN = re.compile(r"true|false|null|[-+.\d]+(e[-+]?\d+)?", re.IGNORECASE)
"""Values that are no secrets, whatever their name."""


def is_secret(name: str) -> bool:
    """Whether a name says that its value is one: HF_TOKEN, api_key, db.password; not max_tokens or eos_token_id."""
    last = re.split(r"[^A-Za-z0-9]", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name))[-1].lower()
    return last in _WORDS or last.endswith(_ENDINGS)


def without_logins(text: str) -> str:
    """User and password taken out of addresses: https://***@host/path."""
    return _LOGIN.sub(HIDDEN, text)


def without_secrets(value: Any) -> Any:
    """A tree of mappings, lists and scalars whose strings under the names of secrets are hidden, and logins too."""
    match value:
        case Mapping():
            return {
                key: HIDDEN if isinstance(item, str) and is_secret(str(key)) else without_secrets(item)
                for key, item in value.items()
            }
        case list() | tuple():
            return [without_secrets(item) for item in value]
        case str():
            return without_logins(value)
        case _:
            return value


def without_arguments(argv: Sequence[str]) -> list[str]:
    """A command line, with `name=value` and `{name: value}` hidden where the name is that of a secret."""

    def hidden(match: re.Match[str]) -> str:
        name, between, value = match.groups()
        if is_secret(name) and not _PLAIN.fullmatch(value):
            return f"{name}{between}{HIDDEN}"
        return f"{name}{between}{_INLINE.sub(hidden, value)}"

    return [without_logins(_INLINE.sub(hidden, argument)) for argument in argv]


def secrets_of(tree: Any) -> set[str]:
    """What `without_secrets` hides by name."""
    match tree:
        case Mapping():
            own = {item for key, item in tree.items() if isinstance(item, str) and is_secret(str(key))}
            return own.union(*map(secrets_of, tree.values()))
        case list() | tuple():
            return set().union(*map(secrets_of, tree))
        case _:
            return set()


def hidden_keys(tree: Any, *above: str) -> list[str]:
    """Dotted keys whose values are missing because `without_secrets` wrote the tree."""
    match tree:
        case Mapping():
            pairs = [(str(key), item) for key, item in tree.items()]
        case list() | tuple():
            pairs = [(str(index), item) for index, item in enumerate(tree)]
        case _:
            return [".".join(above)] if tree == HIDDEN else []
    return [found for key, item in pairs for found in hidden_keys(item, *above, key)]


def hide(text: str, secrets: Iterable[str]) -> str:
    """A text without these secrets and without logins."""
    for secret in sorted(secrets, key=len, reverse=True):
        if len(secret) >= SHORTEST:
            text = text.replace(secret, HIDDEN)
    return without_logins(text)
