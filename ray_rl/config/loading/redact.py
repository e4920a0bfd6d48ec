"""Secrets kept out of what is written: of values whose names say so, and of text that shows them by its form."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any
from urllib.parse import quote

import yaml

from ray_rl.config.loading.override_values import composed

HIDDEN = "***"
"""In place of a secret."""

SHORTEST = 6
"""Characters of a secret that is looked for in running text; a shorter one is a part of ordinary words."""

_LAST = {
    *("token", "key", "apikey", "secret", "secrets", "pwd", "passphrase", "bearer", "auth", "jwt", "headers"),
    *("cookie", "cookies", "credential", "credentials", "cred", "creds"),
}
"""Last words of the names of secrets."""
_ENDINGS = ("password", "passwords", "passwd", "passphrase", "credential", "credentials", "authorization", "apikey")
"""The same as an end of the last word: PGPASSWORD."""
_MANY = {
    "keys": {"api", "access", "secret", "private", "auth", "signing", "encryption", "ssh"},
    "tokens": {"api", "access", "auth", "bearer", "refresh", "session", "hf", "hub"},
}
"""Last words in the plural that are those of secrets behind one of these: api_keys, and not max_tokens."""
_WHOLE = (
    *({"api", "key"}, {"private", "key"}, {"secret", "key"}),
    *({"access", "token"}, {"auth", "token"}, {"connection", "string"}),
)
"""Two words in a row that make a secret of what follows, too: private_key_pem; but not of what only leads to it."""
_LEADS = {"id", "path", "file", "env", "name", "url", "type", "length", "size", "column", "variable", "dir", "folder"}
_FOLDERS = {"PWD", "OLDPWD"}
"""Variables of the shell: hidden as passwords, they would take the working directory out of every message."""
_NOT_BEFORE_TOKEN = {
    *("per", "max", "min", "num", "mean", "first", "last", "next", "new", "eos", "bos", "pad", "unk", "sep", "cls"),
    *("mask", "stop", "end", "start", "begin", "special", "image", "video", "audio", "add", "eot", "eom", "think"),
    *("primary", "foreign", "sort", "group", "dict", "column", "data", "answer", "cache", "kv", "query"),
}
"""`eos_token`, `per_token` and `sort_key` are none."""

_LOGIN = re.compile(r"(?<=://)(?!git@)[^/\s?#'\"]+(?=@)")
_QUERY = re.compile(r"(?<=[?&;#])([\w.~%-]{1,80})=([^&;#\s'\"]+)")
_SIGNATURES = ("signature", "sig")
"""Last words of what signs an address, in a query only."""
_BEARER = re.compile(r"(?i)\b(bearer\s+|authorization\s*[:=]\s*(?:basic|token|bearer|digest)\s+)([\w.~+/=-]{6,})")
_FORM = re.compile(
    r"\b(?:hf_|sk-|pk-lf-|sk-lf-|gh[opsu]_|github_pat_|glpat-|xox[abps]-|AKIA|ASIA|nvapi-|gsk_|AIza)[A-Za-z0-9_-]{16,}\b"
    r"|(?<=hooks\.slack\.com/services/)[\w/]{16,}"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)"
)
"""Tokens of the common services, and keys in PEM."""
_NAMED = re.compile(r"""(?<![\w.-])([\w.-]{1,80})(["']?\s{0,4}[:=]\s{0,4})("[^"]*"|'[^']*'|[^\s,;{}&)\]'"]+)""")
_CERTAIN = re.compile(
    r"(?i)(api_?-?key|password|passwd|passphrase|secret|private_?key|account_?key"
    r"|(access|auth|hf|hub|hugging_?face|github|gitlab|refresh|session)_?token)$"
)
_OPTION = re.compile(
    r"(?<![\w-])(--[\w-]{0,80}(?:api-?key|password|token|secret))(\s+)(?=\S*\d)([^\s'\"-][^\s'\"]{5,})"
)
"""On a command line: --api-key VALUE."""
_LEFT_OUT = re.compile(r"://\*\*\*@|[?&;#][\w.~%-]{1,80}=\*\*\*|(?i:bearer )\*\*\*")
"""What `without_credentials` leaves of an address or a header."""


def is_secret(name: str) -> bool:
    """Whether a name says that its value is one: HF_TOKEN, api_key, db.password, headers; not max_tokens."""
    parts = re.split(r"[^A-Za-z0-9]+", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name[-200:]))
    words = [part.lower() for part in parts if part]
    if not words:
        return False
    last, before = words[-1], words[-2] if len(words) > 1 else ""
    if last in _LAST:
        return name not in _FOLDERS and not (last in ("token", "key") and before in _NOT_BEFORE_TOKEN)
    if last == "pat" and name.isupper():  # GITHUB_PAT, a personal access token; `pat` is most often a pattern.
        return True
    if last.endswith(_ENDINGS) or before in _MANY.get(last, ()):
        return True
    return last not in _LEADS and any({a, b} in _WHOLE for a, b in pairwise(words))


def without_credentials(text: str) -> str:
    """Text without what has the form of a secret: https://***@host/?api_key=***, Bearer ***, hf_..."""

    def hidden(match: re.Match[str]) -> str:
        is_one = is_secret(match[1]) or match[1].lower().endswith(_SIGNATURES)
        return f"{match[1]}={HIDDEN}" if is_one else match[0]

    text = _QUERY.sub(hidden, _LOGIN.sub(HIDDEN, text))
    return _FORM.sub(HIDDEN, _BEARER.sub(rf"\1{HIDDEN}", text))


def without_secrets(value: Any) -> Any:
    """A tree of mappings, lists and scalars in which every text and number under the name of a secret is hidden.

    At any depth below the name, and what has the form of a secret everywhere. None and truth values stay.
    """
    match value:
        case Mapping():
            return {
                key: _all_hidden(item) if is_secret(str(key)) else without_secrets(item) for key, item in value.items()
            }
        case list() | tuple():
            return [without_secrets(item) for item in value]
        case str():
            return without_credentials(value)
        case _:
            return value


def without_arguments(argv: Sequence[str]) -> list[str]:
    """A command line without secrets: of `name=value`, of `{name: value}` in a value, and of `--name value`."""
    shown: list[str] = []
    for index, argument in enumerate(argv):
        before = argv[index - 1] if index else ""
        is_value = before.startswith("--") and "=" not in before and is_secret(before)
        shown.append(HIDDEN if is_value and not argument.startswith("--") else _without_argument(argument))
    return shown


def secrets_of(tree: Any) -> set[str]:
    """What `without_secrets` hides by name, as text."""
    match tree:
        case Mapping():
            return set().union(
                *(set(_leaves(item)) if is_secret(str(key)) else secrets_of(item) for key, item in tree.items())
            )
        case list() | tuple():
            return set().union(*map(secrets_of, tree))
        case _:
            return set()


def hidden_keys(tree: Any, *above: str) -> list[str]:
    """Dotted keys whose values are missing, whole or in part, because `without_secrets` wrote the tree."""
    match tree:
        case Mapping():
            pairs = [(str(key), item) for key, item in tree.items()]
        case list() | tuple():
            pairs = [(str(index), item) for index, item in enumerate(tree)]
        case str():
            return [".".join(above)] if tree == HIDDEN or _LEFT_OUT.search(tree) else []
        case _:
            return []
    return [found for key, item in pairs for found in hidden_keys(item, *above, key)]


def hide(text: str, secrets: Iterable[str]) -> str:
    """A message without these secrets, as they are, quoted or in an address; and without what has the form of one."""
    for secret in sorted(secrets, key=len, reverse=True):
        if len(secret) >= SHORTEST:
            for form in (secret, repr(secret)[1:-1], quote(secret, safe="")):
                text = text.replace(form, HIDDEN)

    def hidden(match: re.Match[str]) -> str:
        return f"{match[1]}{match[2]}{HIDDEN}" if _CERTAIN.search(match[1]) else match[0]

    text = _OPTION.sub(rf"\1\2{HIDDEN}", _NAMED.sub(hidden, text))
    return without_credentials(text)


def _all_hidden(value: Any) -> Any:
    match value:
        case Mapping():
            return {key: _all_hidden(item) for key, item in value.items()}
        case list() | tuple():
            return [_all_hidden(item) for item in value]
        case None | bool() | "":
            return value
        case _:
            return HIDDEN


def _leaves(value: Any) -> Iterator[str]:
    match value:
        case Mapping():
            for item in value.values():
                yield from _leaves(item)
        case list() | tuple():
            for item in value:
                yield from _leaves(item)
        case None | bool():
            return
        case _:
            yield str(value)


def _without_argument(argument: str) -> str:
    key, equals, value = argument.partition("=")
    if equals and re.fullmatch(r"[\w.-]+", key) and any(map(is_secret, key.lstrip("-").split("."))):
        return argument if value in ("", "null", "~", "true", "false") else f"{key}={HIDDEN}"
    shown, end = [], len(argument)
    for start, stop in sorted(_secret_spans(value), reverse=True):
        offset = len(argument) - len(value)
        shown.append(argument[offset + stop : end])
        end = offset + start
    return without_credentials(HIDDEN.join([argument[:end], *reversed(shown)]))


def _secret_spans(value: str) -> list[tuple[int, int]]:
    """From where to where secrets stand in a mapping or a list; to the end, where it is one that cannot be read."""
    if not value.lstrip().startswith(("{", "[")):
        return []
    try:
        node = composed(value)
    except yaml.YAMLError:
        found = next((match for match in _NAMED.finditer(value) if is_secret(match[1])), None)
        return [] if found is None else [(found.start(3), len(value))]
    return [] if node is None else list(_spans(node, under_secret=False))


def _spans(node: yaml.Node, *, under_secret: bool) -> Iterator[tuple[int, int]]:
    match node:
        case yaml.MappingNode():
            for key, item in node.value:
                yield from _spans(item, under_secret=under_secret or is_secret(str(key.value)))
        case yaml.SequenceNode():
            for item in node.value:
                yield from _spans(item, under_secret=under_secret)
        case yaml.ScalarNode() if under_secret and node.value not in ("", "null", "true", "false"):
            yield node.start_mark.index, node.end_mark.index
