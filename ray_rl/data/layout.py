"""Which columns of a table are the prompt and the answer: named by the user, or those of a format that others use."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ray_rl.config.data import Table
from ray_rl.data.columns import RESERVED_COLUMNS, has_column
from ray_rl.errors import DataError


@dataclass(frozen=True, slots=True)
class Layout:
    """What becomes of the columns of a record."""

    prompt_column: str = "prompt"
    """Holds text or messages; may be a dotted path."""
    renames: Mapping[str, str] = field(default_factory=dict)
    """{new name: column of the record}: the column is no longer there under its old name."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """{new name: column of the record}: the column keeps its old name, too."""
    drop_last_answer: bool = False
    """Leave out the assistant's messages at the end of a conversation."""
    detected: str | None = None
    """What was found, in one line for the user; None where the names are the usual ones or the user's."""


@dataclass(frozen=True, slots=True)
class _Format:
    prompt: str
    answers: tuple[str, ...]
    """Columns that can be the answer, if there is no column `answer`."""


FORMATS = {
    "plain": _Format("prompt", ()),
    "verl": _Format("prompt", ("reward_model.ground_truth",)),
    "trl": _Format("prompt", ("solution", "ground_truth")),
    "openrlhf": _Format("input", ("label",)),
    "gsm8k": _Format("question", ()),
    "math": _Format("problem", ("solution",)),
}
"""By `data.format`, in the order in which they are looked for."""


def layout_of(config: Table, columns: Iterable[str], *, where: str, first: Mapping[str, Any]) -> Layout:
    """The layout of a table.

    Args:
        config: names of the user come first.
        columns: the columns of the table.
        where: named in errors.
        first: a record, for what is inside of nested columns.

    Raises:
        DataError: a column that is asked for does not exist, or it is not clear which one is meant.
    """
    names = set(columns)
    formats = _possible(config, names, first)
    prompt = config.prompt_column or _prompt_column(config, formats, names, where=where)
    renames, aliases = config.columns, {}
    if "answer" not in renames:
        answer = _answer_column(config, formats, names, first, where=where)
        if answer is not None:
            aliases["answer"] = answer
    found = None
    if config.format == "auto" and (aliases or prompt != (config.prompt_column or "prompt")):
        answer = f", the answer is column {aliases['answer']!r}" if aliases else ""
        found = f"the prompt is column {prompt!r}{answer}, as in data for {' or '.join(formats)}"
    layout = Layout(prompt, renames, aliases, config.drop_last_answer, found)
    check_columns(names, layout, where=where)
    return layout


def check_columns(columns: Iterable[str], layout: Layout, *, where: str) -> None:
    """Checks that a record or table with these columns has what a layout takes from it.

    Raises:
        DataError: a column that is asked for does not exist, or a name is taken.
    """
    existing = set(columns)
    if _outer(layout.prompt_column, existing) is None:
        raise DataError(
            f"{where}: no column {layout.prompt_column!r}; {_have(existing, layout.prompt_column)} "
            "set data.prompt_column"
        )
    for new, old in layout.renames.items():
        if _outer(old, existing) is None:
            raise DataError(f"{where}: no column {old!r}; {_have(existing, old)} correct data.columns.{new}")
    kept = existing - {layout.prompt_column, *layout.renames.values()}
    for name in sorted(kept & layout.renames.keys()):
        raise DataError(f"{where}: data.columns.{name} gives a name that another column has; rename that one too")
    for name in sorted((kept | layout.renames.keys()) & RESERVED_COLUMNS):
        raise DataError(
            f"{where}: reward functions get their own {name!r}; rename the column with data.columns: {{other: {name}}}"
        )


def notes(layout: Layout, digests: Mapping[str, str]) -> Sequence[str]:
    """What the user should know about how a table is read."""
    lines = [] if layout.detected is None else [layout.detected]
    sampled = [name for name, digest in digests.items() if digest.startswith(("blake2b-sampled:", "rows-sampled:"))]
    if sampled:
        lines.append(f"{', '.join(sampled)}: large; whether it is the same at a resume is told by samples")
    return lines


def possible_answers(columns: Mapping[str, Any]) -> list[str]:
    """Columns that other formats take for the answer, to propose them."""
    candidates = {answer for each in FORMATS.values() for answer in each.answers}
    return sorted(name for name in candidates if has_column(columns, name))


def _possible(config: Table, names: set[str], first: Mapping[str, Any]) -> list[str]:
    """The formats that a table may have."""
    if config.format != "auto":
        return [config.format]
    return [name for name, each in FORMATS.items() if name != "plain" and _fits(each, names, first)]


def _fits(each: _Format, names: set[str], first: Mapping[str, Any]) -> bool:
    has_answer = any(has_column(first, answer) for answer in each.answers)
    if each.prompt == "prompt":
        return "prompt" in names and has_answer
    is_complete = has_answer or ((not each.answers or each.prompt == "problem") and "answer" in names)
    return "prompt" not in names and each.prompt in names and is_complete


def _prompt_column(config: Table, formats: list[str], names: set[str], *, where: str) -> str:
    candidates = sorted({FORMATS[name].prompt for name in formats})
    if len(candidates) > 1:
        raise DataError(
            f"{where}: the prompt can be {' or '.join(map(repr, candidates))}; set data.prompt_column to one of them"
        )
    return candidates[0] if candidates else "prompt"


def _answer_column(
    config: Table, formats: list[str], names: set[str], first: Mapping[str, Any], *, where: str
) -> str | None:
    """The column that rewards get as `answer`; None where there is one of that name, or none can be told."""
    found = sorted({answer for name in formats for answer in FORMATS[name].answers if has_column(first, answer)})
    nested = [answer for answer in found if answer not in names]
    if "answer" not in names:
        # Which of two columns is the answer is left to the user, who is asked for it if a reward needs one.
        return found[0] if len(found) == 1 and found[0] not in config.columns.values() else None
    if nested and config.format == "auto":
        raise DataError(
            f"{where}: the answer can be 'answer' or {nested[0]!r}; set data.format: plain for the first, "
            "or data.format: verl for the second"
        )
    return nested[0] if nested else None


def _outer(path: str, existing: set[str]) -> str | None:
    """The column of a table that a dotted path leads into."""
    parts = path.split(".")
    heads = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((head for head in heads if head in existing), None)


def _have(existing: set[str], wanted: str) -> str:
    near = difflib.get_close_matches(wanted, existing, n=1)
    nearest = f" (nearest: {near[0]})" if near else ""
    return f"the columns are {', '.join(sorted(existing)) or 'none'}{nearest};"
