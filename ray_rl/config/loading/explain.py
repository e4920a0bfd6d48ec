"""Pydantic's errors as one message for the user: place, key, value, remedy."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, cast, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from ray_rl.config.base import Config
from ray_rl.config.loading.foreign_words import our_word
from ray_rl.config.loading.redact import HIDDEN, is_secret, without_arguments, without_secrets
from ray_rl.config.loading.schema import bare, item_of, sections_of
from ray_rl.config.loading.yaml_tree import Located

_SURE = 0.8
"""Similarity (difflib) of a misspelling: one or two letters of a word."""
_PERHAPS = 0.6
"""difflib's own default."""

MOST_FOREIGN = 40
"""Keys of another system that are explained; a whole configuration of verl has hundreds."""


@dataclass(frozen=True, slots=True)
class _Spot:
    """The place in the schema that an error is about."""

    path: tuple[str | int, ...]
    """Keys and indexes as the user writes them, without the kinds that pydantic puts between them."""
    owner: type[Config]
    """Innermost section on the way."""
    field: FieldInfo | None
    """Innermost field on the way; None for a key that `owner` does not have."""
    siblings: dict[str, type[Config]]
    """All kinds, where `owner` is one of several."""
    kinds: dict[str, type[Config]]
    """The sections that may stand here."""


def explain(error: ValidationError, tree: Located, model: type[Config]) -> str:
    """Every problem of validating `tree.plain()` as `model`, each with its place and remedy, as one message."""
    details = error.errors(include_url=False)
    return as_one_message([line for detail in details for line in _lines(detail, tree, model)])


def as_one_message(problems: Sequence[str]) -> str:
    """One problem as it is, several as a list under their number."""
    if len(problems) == 1:
        return problems[0]
    return "\n".join([f"{len(problems)} problems in the configuration:", *(f"  {problem}" for problem in problems)])


def show(value: Any) -> str:
    """A value as YAML writes it, cut at 80 characters."""
    match value:
        case None:
            text = "null"
        case bool():
            text = str(value).lower()
        case str() if re.fullmatch(r"[\w./:~-]+", value):
            text = value
        case _:
            text = repr(value)
    return _cut(text)


def override_place(key: str, written: str) -> str:
    """How messages name an override: without secrets, and cut at 80 characters."""
    (shown,) = without_arguments([f"{key}={written}"])
    return f"override '{_cut(shown)}'"


def _cut(text: str) -> str:
    return text if len(text) <= 80 else text[:77] + "..."


def _lines(detail: ErrorDetails, tree: Located, model: type[Config]) -> Iterator[str]:
    """One problem; of a section that is another system's, one for each of its keys."""
    spot = _find(detail["loc"], model)
    given = detail["input"]
    inner = list(_leaves(given, spot.path)) if detail["type"] == "extra_forbidden" and isinstance(given, dict) else []
    if not any(our_word(".".join(map(str, path))) for path in inner):
        yield _line(detail, tree, model)
        return
    for path in inner[:MOST_FOREIGN]:
        word = our_word(".".join(map(str, path))) or "there is nothing of that name here; remove it"
        yield f"{_named(tree, path, ': unknown key', ': unknown key')}; {word}"
    if len(inner) > MOST_FOREIGN:
        yield f"{_place(tree, spot.path)}: and {len(inner) - MOST_FOREIGN} more keys that are unknown"


def _leaves(value: Any, path: tuple[str | int, ...]) -> Iterator[tuple[str | int, ...]]:
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _leaves(item, (*path, key))
    else:
        yield path


def _line(detail: ErrorDetails, tree: Located, model: type[Config]) -> str:
    spot = _find(detail["loc"], model)
    key = ".".join(map(str, spot.path))
    value = HIDDEN if is_secret(key) else show(without_secrets(detail["input"]))
    match detail["type"]:
        case "extra_forbidden":
            return f"{_named(tree, spot.path, f': unknown key, its value is {value}', ': unknown key')}; " + _suggest(
                spot, tree, model
            )
        case "missing":
            meaning = f" ({_meaning(spot)})" if _meaning(spot) else ""
            return f"{_place(tree, spot.path)}: {key}: missing, and there is no default; add it{meaning}"
        case "union_tag_not_found":
            where = _place(tree, spot.path)
            words = {name: our_word(f"{key}.{name}") for name in detail["input"]}
            foreign = "".join(f"; {key}.{name}: {word}" for name, word in words.items() if word)
            return f"{where}: {key}.kind: missing in {value}; set it to one of {', '.join(spot.kinds)}{foreign}"
        case "union_tag_invalid":
            seen, kinds = detail["ctx"]["tag"], list(spot.kinds)
            return f"{_named(tree, (*spot.path, 'kind'), f'={show(seen)}')}: {_unknown_kind(seen, kinds)}"
        case _:
            meaning = f" ({_meaning(spot)})" if _meaning(spot) else ""
            return f"{_named(tree, spot.path, f'={value}')}: {_requirement(detail)}{meaning}"


def _named(tree: Located, path: tuple[str | int, ...], seen: str, seen_in_override: str = "") -> str:
    """Place, key and value; the latter two only once where an override is the place, as it shows them."""
    where = _place(tree, path)
    key = ".".join(map(str, path))
    return f"{where}{seen_in_override}" if where.startswith(f"override '{key}=") else f"{where}: {key}{seen}"


def _unknown_kind(seen: str, kinds: list[str]) -> str:
    near = _nearest(seen, kinds, _PERHAPS)
    hint = f"did you mean {near[0]}? The kinds are" if near else "set it to one of"
    return f"unknown kind; {hint} {', '.join(kinds)}"


def _requirement(detail: ErrorDetails) -> str:
    """Pydantic's sentence as what the value must be, which is its remedy."""
    if detail["type"] in ("model_type", "model_attributes_type"):
        return "must be a mapping of options"
    if detail["type"] == "string_type" and detail["input"] is None:
        return "must be text; put the word in quotes if it is meant as such"
    if detail["type"] == "string_type" and isinstance(detail["input"], int | float):
        return "must be text; put it in quotes, else YAML reads a number or a truth value"
    text = detail["msg"].removeprefix("Value error, ")
    return re.sub(r"^(Input|String|List|Tuple|Dictionary) should ", "must ", text).replace(
        " valid dictionary", " mapping"
    )


def _meaning(spot: _Spot) -> str:
    """The docstring of the field; a kind that only sets another default has it from the class above."""
    name = next((name for name, field in spot.owner.model_fields.items() if field is spot.field), None)
    owners = [owner for owner in spot.owner.__mro__ if issubclass(owner, Config) and name in owner.model_fields]
    meanings = [owner.model_fields[name].description for owner in owners] if name is not None else []
    return next((" ".join(meaning.split()) for meaning in meanings if meaning), "")


def _place(tree: Located, path: tuple[str | int, ...]) -> str:
    """Where the deepest part of the path that was written stands."""
    node = tree
    for key in path:
        below = node.child(key)
        if below is None:
            break
        node = below
    return node.where


def _find(loc: tuple[str | int, ...], model: type[Config]) -> _Spot:
    annotation: Any = model
    path: tuple[str | int, ...] = ()
    owner: type[Config] = model
    field: FieldInfo | None = None
    siblings: dict[str, type[Config]] = {}
    for step in loc:
        kinds = sections_of(annotation)
        if len(kinds) > 1:
            if step not in kinds:
                break
            annotation, siblings = kinds[str(step)], kinds
            continue
        if kinds:
            owner = next(iter(kinds.values()))
            field = owner.model_fields.get(str(step))
            annotation = field.annotation if field else None
            siblings = siblings if owner in siblings.values() else {}
        else:
            annotation = item_of(annotation, step)
            if annotation is None:
                break
        path = (*path, step)
        if annotation is None:
            break
    return _Spot(path, owner, field, siblings, sections_of(annotation))


def _suggest(spot: _Spot, tree: Located, model: type[Config]) -> str:
    """What the user may have meant by a key that its section does not have."""
    name, level = str(spot.path[-1]), spot.path[:-1]
    prefix = "".join(f"{key}." for key in level)
    here = list(spot.owner.model_fields)
    elsewhere = {path: path.rpartition(".")[2] for path in _paths(model, tree, "")}
    kinds = [kind for kind, sibling in spot.siblings.items() if name in sibling.model_fields]
    word = our_word(f"{prefix}{name}")
    if word is not None and not kinds and name.replace("-", "_") not in here:
        return word
    if near := _nearest(name, here, _SURE):
        return f"did you mean {prefix}{near[0]}?"
    if kinds:
        return f"it belongs to kind {' and '.join(kinds)}; set {prefix}kind or remove it"
    same = [path for path, last in elsewhere.items() if last == name]
    if 1 <= len(same) <= 3:
        return f"did you mean {' or '.join(same)}?"
    if near := _nearest(name, here, _PERHAPS):
        return f"did you mean {prefix}{near[0]}?"
    if near := _nearest(name, sorted(set(elsewhere.values())), _SURE):
        return f"did you mean {' or '.join(path for path, last in elsewhere.items() if last == near[0])}?"
    return f"remove it or use one of {', '.join(here)}"


def _nearest(name: str, names: Sequence[str], similarity: float) -> list[str]:
    return get_close_matches(name.lower().replace("-", "_"), names, n=1, cutoff=similarity)


def _paths(annotation: Any, node: Located | None, prefix: str) -> Iterator[str]:
    """Every key that could be written, in the sections and kinds that the user chose."""
    kinds = sections_of(annotation)
    if kinds:
        chosen = node.child("kind") if node else None
        only = next(iter(kinds.values())) if len(kinds) == 1 else None
        owner = only or (kinds.get(str(chosen.value)) if chosen else None)
        for name, field in owner.model_fields.items() if owner else ():
            yield f"{prefix}{name}"
            yield from _paths(field.annotation, node.child(name) if node else None, f"{prefix}{name}.")
    elif get_origin(bare(annotation)) is list and node and isinstance(node.value, list):
        for index, entry in enumerate(cast("list[Located]", node.value)):
            yield from _paths(get_args(bare(annotation))[0], entry, f"{prefix}{index}.")
