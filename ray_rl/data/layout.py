"""Finds the columns of the prompt and the answer: named by the user, or those of a common format."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ray_rl.config.data import Table
from ray_rl.config.loading.nearest import nearest
from ray_rl.data.columns import RESERVED_COLUMNS, has_column
from ray_rl.errors import DataError


@dataclass(frozen=True, slots=True)
class Layout:
    """The meaning of the columns of a record."""

    prompt_column: str = "prompt"
    """The column with text or messages; may be a dotted path."""
    renames: Mapping[str, str] = field(default_factory=dict)
    """{new name: column of the record}: the column loses its old name."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """{new name: column of the record}: the column also keeps its old name."""
    drop_last_answer: bool = False
    """Whether to leave out the assistant's messages at the end of a conversation."""
    function: str | None = None
    """The user's function that returns the rows and names their columns; None if the configuration can rename them."""
    detected: str | None = None
    """One line for the user about the detected columns; None if the names are the usual ones or the user's."""


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
"""Formats by `data.format`, in the order in which they are tried."""


def layout_of(config: Table, columns: Iterable[str], *, where: str, first: Mapping[str, Any]) -> Layout:
    """Returns the layout of a table.

    Args:
        config: the configuration, whose column names come first.
        columns: the columns of the table.
        where: the name of the table in errors.
        first: a record, which shows nested columns.

    Raises:
        DataError: a requested column does not exist, or several columns are possible.
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
    layout = Layout(prompt, renames, aliases, config.drop_last_answer, detected=found)
    check_columns(names, layout, where=where)
    return layout


def check_columns(columns: Iterable[str], layout: Layout, *, where: str) -> None:
    """Checks that a record or table with these columns has the columns of a layout.

    Raises:
        DataError: a requested column does not exist, or a name is in use.
    """
    existing = set(columns)
    if _outer(layout.prompt_column, existing) is None:
        remedy = f"return it from {layout.function}" if layout.function else "set data.prompt_column"
        have = _have(existing, layout.prompt_column)
        raise DataError(f"{where}: no column {layout.prompt_column!r}; {have} {remedy}")
    for new, old in layout.renames.items():
        if _outer(old, existing) is None:
            raise DataError(f"{where}: no column {old!r}; {_have(existing, old)} correct data.columns.{new}")
    kept = existing - {layout.prompt_column, *layout.renames.values()}
    for name in sorted(kept & layout.renames.keys()):
        raise DataError(f"{where}: data.columns.{name} gives a name that another column has; rename that one too")
    for name in sorted((kept | layout.renames.keys()) & RESERVED_COLUMNS):
        remedy = f"in {layout.function}" if layout.function else f"with data.columns: {{other: {name}}}"
        raise DataError(f"{where}: reward functions get their own {name!r}; rename the column {remedy}")


def notes(digests: Mapping[str, str], *, detected: str | None = None) -> Sequence[str]:
    """Returns lines for the user about how a table is read.

    Args:
        digests: the digests of its content, by the name of the file or data set.
        detected: `Layout.detected`.
    """
    lines = [] if detected is None else [detected]
    sampled = [name for name, digest in digests.items() if digest.startswith(("blake2b-sampled:", "rows-sampled:"))]
    if sampled:
        lines.append(f"{', '.join(sampled)}: large; a resume compares only samples of it")
    return lines


def possible_answers(columns: Mapping[str, Any]) -> list[str]:
    """Returns the columns that are the answer in other formats, as proposals."""
    candidates = {answer for each in FORMATS.values() for answer in each.answers}
    return sorted(name for name in candidates if has_column(columns, name))


def _possible(config: Table, names: set[str], first: Mapping[str, Any]) -> list[str]:
    """Returns the formats that a table may have."""
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
    """Returns the column that rewards get as `answer`; None if there is one with that name, or none is certain."""
    found = sorted({answer for name in formats for answer in FORMATS[name].answers if has_column(first, answer)})
    nested = [answer for answer in found if answer not in names]
    if "answer" not in names:
        # If two columns could be the answer, the user must decide, and is asked if a reward needs it.
        return found[0] if len(found) == 1 and found[0] not in config.columns.values() else None
    if nested and config.format == "auto":
        raise DataError(
            f"{where}: the answer can be 'answer' or {nested[0]!r}; set data.format: plain for the first, "
            "or data.format: verl for the second"
        )
    return nested[0] if nested else None


def _outer(path: str, existing: set[str]) -> str | None:
    """Returns the column of a table at the start of a dotted path."""
    parts = path.split(".")
    heads = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((head for head in heads if head in existing), None)


def _have(existing: set[str], wanted: str) -> str:
    near = nearest(wanted, sorted(existing))
    hint = f" (nearest: {near})" if near else ""
    return f"the columns are {', '.join(sorted(existing)) or 'none'}{hint};"
