"""Lists all forms of data sets by name, and chooses the one that a file has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import get_args

from ray_rl.config.offline import OfflineKinds, Wanted
from ray_rl.data.columns import shorten
from ray_rl.data.formats import (
    alpaca,
    conversations,
    helpsteer2,
    hh_rlhf,
    kto,
    math_shepherd,
    nectar,
    openai_preference,
    openassistant,
    preference,
    prm800k,
    prompt_completion,
    stepwise,
    ultrafeedback,
)
from ray_rl.data.formats.format import Format
from ray_rl.data.records import SourceRecord
from ray_rl.errors import ConfigError, DataError

FORMATS: Mapping[str, Format] = {
    each.name: each
    for each in (
        prompt_completion.FORMAT,
        conversations.MESSAGES,
        conversations.SHAREGPT,
        alpaca.FORMAT,
        preference.FORMAT,
        hh_rlhf.FORMAT,
        openai_preference.FORMAT,
        ultrafeedback.FORMAT,
        helpsteer2.RATED,
        helpsteer2.PREFERRED,
        nectar.FORMAT,
        openassistant.FORMAT,
        kto.FORMAT,
        stepwise.FORMAT,
        prm800k.FORMAT,
        math_shepherd.FORMAT,
    )
}
"""The forms of data sets for offline training, by `data.format`."""

RENAMED: Mapping[Wanted, str] = {
    "demonstration": "{prompt: question, completion: answer}",
    "comparison": "{prompt: question, chosen: better, rejected: worse}",
    "judged": "{prompt: question, completion: answer}",
    "steps": "{prompt: question, completions: steps}",
}
"""An example of `data.columns` for each kind of record."""


def choose_format(name: str, first: Sequence[SourceRecord], *, wanted: Wanted) -> Format:
    """Returns the form of a data set: the one that is named, or for "auto" the only one that its first rows have.

    Args:
        name: the value of `data.format`, not one of prompts alone, which the rules of the configuration refuse.
        first: the first rows, at least one.
        wanted: what the algorithm trains on.

    Raises:
        ConfigError: the named form has other records than the wanted ones.
        DataError: no form fits, or several do, or one with other records.
    """
    if name != "auto":
        if FORMATS[name].wanted != wanted:
            raise ConfigError(f"data.format={name}: {_other(FORMATS[name], wanted)}")
        return FORMATS[name]
    where = first[0].where
    fitting = [each for each in FORMATS.values() if any(each.fits(row.content) for row in first)]
    if not fitting:
        raise DataError(
            f"{where}: {_seen(first)}, as in no known form of data; {_kinds(wanted)} needs {_described(wanted)}; "
            f"rename columns, for example data.columns: {RENAMED[wanted]}"
        )
    if len(fitting) > 1:
        names = " or ".join(each.name for each in fitting)
        raise DataError(f"{where}: {_seen(first)}, so the data can be {names}; set data.format to one of them")
    (found,) = fitting
    if found.wanted != wanted:
        raise DataError(
            f"{where}: {_seen(first)}: {_other(found, wanted)}, or data.format if the rows have one of these forms too"
            f"{_imitation(first, wanted)}{_labelled(first, wanted)}"
        )
    return found


def _other(found: Format, wanted: Wanted) -> str:
    return (
        f"this is data for {_kinds(found.wanted)} ({found.name}: {found.line}), and {_kinds(wanted)} needs "
        f"{_described(wanted)}; set algorithm.kind to {_kinds(found.wanted)}"
    )


def _imitation(first: Sequence[SourceRecord], wanted: Wanted) -> str:
    """Returns how the better answers of pairs are imitated, if the prompt has a column of its own; else ""."""
    content = first[0].content
    is_pair = isinstance(content, Mapping) and {"prompt", "chosen", "rejected"} <= content.keys()
    chosen = "; or, to imitate the chosen answers, set data.columns: {completion: chosen}"
    return chosen if is_pair and wanted == "demonstration" else ""


def _labelled(first: Sequence[SourceRecord], wanted: Wanted) -> str:
    """Returns how a column of another name becomes the label, if it has a truth value in every row; else ""."""
    contents = [row.content for row in first if isinstance(row.content, Mapping)]
    if wanted != "judged" or not contents or "label" in contents[0]:
        return ""
    found = [name for name in contents[0] if all(isinstance(content.get(name), bool) for content in contents)]
    return "".join(f"; or, if {name} says what is desirable, set data.columns: {{label: {name}}}" for name in found[:1])


def _kinds(wanted: Wanted) -> str:
    """Returns the algorithms that are trained on these records."""
    kinds = [each.model_fields["kind"].default for each in get_args(OfflineKinds) if each.wanted == wanted]
    return " or ".join([", ".join(kinds[:-1]), kinds[-1]] if kinds[:-1] else kinds)


def _described(wanted: Wanted) -> str:
    """Returns the forms with the wanted records, each with its columns."""
    forms = [f"{each.name} ({', '.join(each.columns)})" for each in FORMATS.values() if each.wanted == wanted]
    return f"data in {'one of the forms' if len(forms) > 1 else 'the form'} {'; '.join(forms)}"


def _seen(first: Sequence[SourceRecord]) -> str:
    content = first[0].content
    if not isinstance(content, Mapping):
        return f"{shorten(content)} is not an object with columns"
    return f"the columns are {', '.join(sorted(map(str, content))) or 'none'}"
