"""Turns Pydantic's errors into one message for the user: place, key, value and remedy."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, cast, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from ray_rl.config.algorithm import Algorithm
from ray_rl.config.base import Config, docstrings_of
from ray_rl.config.loading.foreign_words import KINDS, VALUES, our_word
from ray_rl.config.loading.lacking import lacks
from ray_rl.config.loading.nearest import nearest
from ray_rl.config.loading.redact import HIDDEN, is_secret, without_arguments, without_secrets
from ray_rl.config.loading.schema import bare, item_of, sections_of
from ray_rl.config.loading.yaml_tree import Located

_SURE = 0.8
"""Similarity (difflib) of words that differ in one or two letters."""

_PLAINER = {
    "a valid (integer|number|boolean|dictionary)": r"a \1",
    ", (unable to|got a number with) .*": "",
    "a integer": "an integer",
    "dictionary": "mapping",
    "a boolean": "true or false",
    "greater than or equal to": "at least",
    "less than or equal to": "at most",
}
"""Patterns in the sentences of pydantic, and plainer words; applied in this order."""

MOST_FOREIGN = 40
"""The most keys of another system that are explained: a whole configuration of verl has hundreds."""


@dataclass(frozen=True, slots=True)
class _Spot:
    """The place in the schema that an error is about."""

    path: tuple[str | int, ...]
    """Keys and indexes as the user writes them, without the kinds that pydantic inserts."""
    owner: type[Config]
    """Innermost section on the path."""
    field: FieldInfo | None
    """Innermost field on the path; None for a key that `owner` does not have."""
    siblings: dict[str, type[Config]]
    """All sections by kind, if `owner` is one of several kinds."""
    kinds: dict[str, type[Config]]
    """The sections that are allowed here."""


def explain(error: ValidationError, tree: Located, model: type[Config]) -> str:
    """Returns one message with every problem of validating `tree.plain()` as `model`, with places and remedies."""
    details = list(_joined(error.errors(include_url=False), model))
    return as_one_message([line for detail in details for line in _lines(detail, tree, model)])


def as_one_message(problems: Sequence[str]) -> str:
    """Returns the only problem, or a list of all problems under their number."""
    if len(problems) == 1:
        return problems[0]
    return "\n".join([f"{len(problems)} problems in the configuration:", *(f"  {problem}" for problem in problems)])


def show(value: Any) -> str:
    """Formats a value as in YAML, with at most 80 characters."""
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
    """Returns the name of an override in messages: without secrets, with at most 80 characters."""
    (shown,) = without_arguments([f"{key}={written}"])
    return f"override '{_cut(shown)}'"


def _cut(text: str) -> str:
    return text if len(text) <= 80 else text[:77] + "..."


def _joined(details: Sequence[ErrorDetails], model: type[Config]) -> Iterator[ErrorDetails]:
    """Yields the errors with those of one value as one, if it can be one of several lists of words."""
    for (_, kind), same in groupby(details, lambda each: (_find(each["loc"], model).path, each["type"])):
        first, *others = same
        if kind == "literal_error" and others:
            words = [detail["ctx"]["expected"] for detail in (first, *others)]
            first["msg"] = f"Input should be {', '.join(sorted(words, key=lambda text: ' or ' in text))}"
            others = []
        yield from (first, *others)


def _lines(detail: ErrorDetails, tree: Located, model: type[Config]) -> Iterator[str]:
    """Yields one problem, or one for each key of a section that another system has."""
    spot = _find(detail["loc"], model)
    given = detail["input"]
    inner = list(_leaves(given, spot.path)) if detail["type"] == "extra_forbidden" and isinstance(given, dict) else []
    if not any(our_word(".".join(map(str, path)), tree) for path in inner):
        yield _line(detail, tree, model)
        return
    for path in inner[:MOST_FOREIGN]:
        word = our_word(".".join(map(str, path)), tree) or "there is no such key here; remove it"
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
            ours = {name for kind in spot.kinds.values() for name in kind.model_fields}
            words = {name: our_word(f"{key}.{name}", tree) for name in detail["input"] if name not in ours}
            foreign = "".join(f"; {key}.{name}: {word}" for name, word in words.items() if word)
            return f"{where}: {key}.kind: missing in {value}; set it to one of {', '.join(spot.kinds)}{foreign}"
        case "union_tag_invalid":
            seen, kinds = detail["ctx"]["tag"], list(spot.kinds)
            return f"{_named(tree, (*spot.path, 'kind'), f'={show(seen)}')}: {_unknown_kind(seen, kinds)}"
        case _:
            meaning = f" ({_meaning(spot)})" if _meaning(spot) else ""
            word = f"; {VALUES[key, value]}" if (key, value) in VALUES else ""
            return f"{_named(tree, spot.path, f'={value}')}: {_requirement(detail)}{meaning}{word}"


def _named(tree: Located, path: tuple[str | int, ...], seen: str, seen_in_override: str = "") -> str:
    """Returns place, key and value, without repeating the key and value of an override."""
    where = _place(tree, path)
    key = ".".join(map(str, path))
    return f"{where}{seen_in_override}" if where.startswith(f"override '{key}=") else f"{where}: {key}{seen}"


def _unknown_kind(seen: str, kinds: list[str]) -> str:
    other = KINDS.get(_plain(seen))
    near = other if other in kinds else nearest(_plain(seen), kinds)
    hint = f"did you mean {near}? The kinds are" if near else "set it to one of"
    return f"unknown kind; {hint} {', '.join(kinds)}"


def _requirement(detail: ErrorDetails) -> str:
    """Returns what the value must be, from the sentence of pydantic."""
    if isinstance(detail["input"], dict) and list(detail["input"]) == ["stage"]:
        return "refers to a stage, which only `ray-rl pipeline` knows; set it to the folder of a model"
    if detail["type"] in ("model_type", "model_attributes_type"):
        return "must be a mapping of options"
    if detail["type"] == "string_type" and detail["input"] is None:
        return "must be text; for the word itself, put it in quotes"
    if detail["type"] == "string_type" and isinstance(detail["input"], int | float):
        return "must be text; put it in quotes, because YAML reads it as a number or a truth value"
    if detail["input"] == "None":
        return "is text; write null for None"
    text = detail["msg"].removeprefix("Value error, ")
    text = re.sub(r"^(Input|String|List|Tuple|Dictionary) should ", "must ", text)
    for words, plain in _PLAINER.items():
        text = re.sub(words, plain, text)
    return text


def _meaning(spot: _Spot) -> str:
    """Returns the docstring of the field; a kind that only sets another default inherits it from its base class."""
    name = next((name for name, field in spot.owner.model_fields.items() if field is spot.field), None)
    owners = [owner for owner in spot.owner.__mro__ if issubclass(owner, Config)]
    meanings = [docstrings_of(owner).get(name) for owner in owners] if name is not None else []
    return next((" ".join(meaning.split()) for meaning in meanings if meaning), "")


def _place(tree: Located, path: tuple[str | int, ...]) -> str:
    """Returns the place of the deepest part of the path that the user wrote."""
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
    """Returns what the user may have meant by a key that its section does not have."""
    name, level = str(spot.path[-1]), spot.path[:-1]
    prefix = "".join(f"{key}." for key in level)
    if level and (reason := lacks(str(level[0]), tree)):
        return f"{level[0]}: {reason}"
    here = [field for field in spot.owner.model_fields if lacks(f"{prefix}{field}", tree) is None]
    # Settings of algorithms that learn from examples are no advice for one that learns from rollouts.
    is_online = issubclass(spot.owner, Algorithm)
    siblings = {kind: each for kind, each in spot.siblings.items() if issubclass(each, Algorithm) == is_online}
    kinds = [kind for kind, sibling in siblings.items() if name in sibling.model_fields]
    word = our_word(f"{prefix}{name}", tree)
    if word is not None and not kinds and name.replace("-", "_") not in here:
        return word
    if near := nearest(_plain(name), here, similarity=_SURE):
        return f"did you mean {prefix}{near}?"
    if kinds:
        return f"it belongs to kind {' and '.join(kinds)}; set {prefix}kind or remove it"
    inside = [f"{prefix}{field}.{name}" for field in here if _has(spot.owner.model_fields[field].annotation, name)]
    if len(inside) == 1 and lacks(inside[0], tree) is None:
        return f"did you mean {inside[0]}?"
    elsewhere = {path: path.rpartition(".")[2] for path in _paths(model, tree, "")}
    same = [path for path, last in elsewhere.items() if last == name]
    if len(same) <= 3 and (meant := _meant(same, tree)):
        return meant
    if near := nearest(_plain(name), here):
        return f"did you mean {prefix}{near}?"
    if near := nearest(_plain(name), sorted(set(elsewhere.values())), similarity=_SURE):
        return _meant([path for path, last in elsewhere.items() if last == near], tree)
    return f"remove it or use one of {', '.join(here)}"


def _has(annotation: Any, name: str) -> bool:
    """Returns whether an annotation allows sections that have a key."""
    return any(name in section.model_fields for section in sections_of(annotation).values())


def _meant(paths: Sequence[str], tree: Located) -> str:
    """Returns a question for those of the keys that the configuration can have, or why it cannot have the first one."""
    reasons = {path: lacks(path, tree) for path in paths}
    allowed = [path for path, reason in reasons.items() if reason is None]
    if allowed:
        return f"did you mean {' or '.join(allowed)}?"
    return f"it is like {paths[0]}, but {reasons[paths[0]]}" if paths else ""


def _plain(name: str) -> str:
    return name.lower().replace("-", "_")


def _paths(annotation: Any, node: Located | None, prefix: str) -> Iterator[str]:
    """Yields every possible key in the sections and kinds that the user chose."""
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
