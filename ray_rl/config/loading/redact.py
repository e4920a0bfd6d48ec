"""Keeps secrets out of output. They are recognised by the names of values, or by the form of text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any
from urllib.parse import quote

import yaml

from ray_rl.config.loading.override_values import composed

HIDDEN = "***"
"""Replaces a secret."""

SHORTEST = 6
"""Fewest characters of a secret that is searched in messages; shorter ones are parts of ordinary words."""

_LAST = {
    *("token", "key", "apikey", "secret", "secrets", "pwd", "passphrase", "bearer", "auth", "jwt", "headers"),
    *("cookie", "cookies", "credential", "credentials", "cred", "creds"),
}
"""Last words of the names of secrets."""
_ENDINGS = ("password", "passwords", "passwd", "passphrase", "credential", "credentials", "authorization", "apikey")
"""Ends of the last word: PGPASSWORD."""
_MANY = {
    "keys": {"api", "access", "secret", "private", "auth", "signing", "encryption", "ssh"},
    "tokens": {"api", "access", "auth", "bearer", "refresh", "session", "hf", "hub"},
}
"""Last words in the plural, with the words before them that make them secrets: api_keys, but not max_tokens."""
_WHOLE = (
    *({"api", "key"}, {"private", "key"}, {"secret", "key"}),
    *({"access", "token"}, {"auth", "token"}, {"connection", "string"}),
)
"""Pairs of words that make the name that of a secret, unless it ends in one of `_LEADS`: private_key_pem."""
_LEADS = {"id", "path", "file", "env", "name", "url", "type", "length", "size", "column", "variable", "dir", "folder"}
_FOLDERS = {"PWD", "OLDPWD"}
"""Variables of the shell whose names look like passwords, but which contain folders."""
_NOT_BEFORE_TOKEN = {
    *("per", "max", "min", "num", "mean", "first", "last", "next", "new", "eos", "bos", "pad", "unk", "sep", "cls"),
    *("mask", "stop", "end", "start", "begin", "special", "image", "video", "audio", "add", "eot", "eom", "think"),
    *("primary", "foreign", "sort", "group", "dict", "column", "data", "answer", "cache", "kv", "query"),
    *("prompt", "chosen", "rejected", "input", "output", "label", "response", "question", "fn"),
}
"""Words before `token` or `key` in names that are no secrets: `eos_token`, `per_token`, `sort_key`."""

_LOGIN = re.compile(r"(?<=://)(?!git@)[^/\s?#'\"]+(?=@)")
_QUERY = re.compile(r"(?<=[?&;#])([\w.~%-]{1,80})=([^&;#\s'\"]+)")
_SIGNATURES = ("signature", "sig")
"""Last words of the names of signatures, which are secrets only in the query of an address."""
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
"""An option on a command line: --api-key VALUE."""
_LEFT_OUT = re.compile(r"://\*\*\*@|[?&;#][\w.~%-]{1,80}=\*\*\*|(?i:bearer )\*\*\*")
"""The traces of `without_credentials` in an address or a header."""


def is_secret(name: str) -> bool:
    """Returns whether a name is that of a secret: HF_TOKEN, api_key, db.password, headers; but not max_tokens."""
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
    """Hides what has the form of a secret in a text: https://***@host/?api_key=***, Bearer ***, hf_..."""

    def hidden(match: re.Match[str]) -> str:
        is_one = is_secret(match[1]) or match[1].lower().endswith(_SIGNATURES)
        return f"{match[1]}={HIDDEN}" if is_one else match[0]

    text = _QUERY.sub(hidden, _LOGIN.sub(HIDDEN, text))
    return _FORM.sub(HIDDEN, _BEARER.sub(rf"\1{HIDDEN}", text))


def without_secrets(value: Any) -> Any:
    """Returns a tree of mappings, lists and scalars without secrets.

    All text and numbers below the name of a secret are hidden, and everywhere what has the form of a secret. None and
    truth values stay.
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
    """Returns a command line without secrets in `name=value`, in `{name: value}` in a value, and in `--name value`."""
    shown: list[str] = []
    for index, argument in enumerate(argv):
        before = argv[index - 1] if index else ""
        is_value = before.startswith("--") and "=" not in before and is_secret(before)
        shown.append(HIDDEN if is_value and not argument.startswith("--") else _without_argument(argument))
    return shown


def secrets_of(tree: Any) -> set[str]:
    """Returns the values, as text, that `without_secrets` hides because of their names."""
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
    """Returns the dotted keys of values that `without_secrets` has hidden, wholly or in part."""
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
    """Hides these secrets in a message, also if quoted or in an address, and what has the form of a secret."""
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
    """Returns start and end of every secret in a mapping or list; the end of the text if YAML cannot read it."""
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
