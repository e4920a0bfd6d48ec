"""Defects of real files end in an error with place and remedy, or are counted, or are harmless."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ray_rl.config.data import Jsonl
from ray_rl.config.offline import Wanted
from ray_rl.data.formats.choose import choose_format
from ray_rl.data.formats.record import Dropped
from ray_rl.data.json_lines import JsonlRecords
from ray_rl.errors import DataError
from tests.unit.data.formats.converting import turn

QUESTION, ANSWER, OTHER = turn("user", "1+1?"), turn("assistant", "2"), turn("assistant", "3")
CHAT = {"messages": [QUESTION, ANSWER]}
PAIR = {"prompt": "1+1?", "chosen": "2", "rejected": "3"}
SCORED = PAIR | {"score_chosen": 8.0, "score_rejected": 2.0}
HH = {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello!", "rejected": "\n\nHuman: Hi\n\nAssistant: No"}
LABELLED = {"prompt": "1+1?", "completion": "2", "label": True}
HELPFUL = {"prompt": "1+1?", "response": "2", "helpfulness": 3}
STEPS = {"prompt": "1+1?", "completions": ["It is 2."], "labels": [True]}


def lines(*rows: Any, end: str = "\n") -> bytes:
    return "".join(json.dumps(row) + end for row in rows).encode()


HARMLESS: dict[str, tuple[bytes, Wanted, int]] = {
    "a byte order mark": (b"\xef\xbb\xbf" + lines(CHAT), "demonstration", 1),
    "Windows line ends": (lines(CHAT, CHAT, end="\r\n"), "demonstration", 2),
    "blank lines": (b"\n" + lines(CHAT, end="\n\n \n"), "demonstration", 1),
    "messages as JSON text": (lines({"messages": json.dumps(CHAT["messages"])}), "demonstration", 1),
    "the prompt a second time in both answers": (
        lines({"prompt": "1+1?", "chosen": [QUESTION, ANSWER], "rejected": [QUESTION, OTHER]}),
        "comparison",
        1,
    ),
}
"""The text of a file, what is wanted, and the number of records."""

COUNTED: dict[str, tuple[bytes, Wanted, str]] = {
    "equal answers": (lines(PAIR, PAIR | {"rejected": "2"}), "comparison", "chosen and rejected are the same"),
    "an empty answer": (lines(PAIR, PAIR | {"chosen": "\n"}), "comparison", "an empty answer"),
    "an empty prompt": (lines(PAIR, PAIR | {"prompt": ""}), "comparison", "an empty prompt"),
    "chosen and rejected swapped": (
        lines(SCORED, SCORED | {"score_chosen": 2.0, "score_rejected": 8.0}),
        "comparison",
        "the rejected answer has the higher score",
    ),
    "prompt and completion swapped": (
        lines({"prompt": [QUESTION], "completion": [ANSWER]}, {"prompt": [ANSWER], "completion": [QUESTION]}),
        "demonstration",
        "no message of the user before the answer",
    ),
    "equal scores": (
        lines(SCORED, SCORED | {"score_rejected": 8.0}),
        "comparison",
        "no answer is better than another",
    ),
    "no last answer": (
        lines(CHAT, {"messages": [QUESTION, ANSWER, QUESTION]}),
        "demonstration",
        "no answer of the assistant at the end",
    ),
    "roles out of order": (
        lines(CHAT, {"messages": [QUESTION, QUESTION, ANSWER]}),
        "demonstration",
        "roles out of order",
    ),
    "dialogues without a common start": (
        lines(HH, HH | {"rejected": "\n\nHuman: Ho\n\nAssistant: No"}),
        "comparison",
        "the two dialogues differ before their last answers",
    ),
    "an answer without another": (
        lines(HELPFUL, HELPFUL | {"response": "3", "helpfulness": 1}, HELPFUL | {"prompt": "2+2?"}),
        "comparison",
        "fewer than two answers to a prompt",
    ),
    "a call of a tool": (
        lines(CHAT, {"messages": [QUESTION, turn("assistant", None, tool_calls=[{"id": "c1"}])]}),
        "demonstration",
        "tools or calls of tools, which are not supported",
    ),
}
"""The text of a file whose first record is right, what is wanted, and why the other one is dropped."""

REFUSED: dict[str, tuple[bytes, Wanted, str]] = {
    "UTF-16": ("\ufeff".encode("utf-16-le") + b"x", "demonstration", "DATA: UTF-16, not UTF-8; convert the file"),
    "Latin-1": (lines(CHAT) + b'{"messages": "caf\xe9"}', "demonstration", "DATA:2: not UTF-8"),
    "a cut last line": (lines(CHAT, CHAT)[:-20], "demonstration", "DATA:2: not JSON: .* write one JSON object per"),
    "one list": (json.dumps([CHAT]).encode(), "demonstration", "DATA:1: .* is not a row; .*jq -c '.\\[\\]' IN > OUT"),
    "a key twice": (b'{"prompt": "a", "prompt": "b"}', "comparison", 'DATA:1: the key "prompt" a second time'),
    "NaN": (b'{"prompt": "a", "score_chosen": NaN}', "comparison", "DATA:1: NaN, which is not JSON .* write null"),
    "a nested null": (
        lines(CHAT, {"messages": [QUESTION, turn("assistant", None)]}),
        "demonstration",
        r"DATA:2: messages\[1\].content is None; only text is supported",
    ),
    "a turn that is null": (
        lines(CHAT, {"messages": [QUESTION, None]}),
        "demonstration",
        r"DATA:2: messages\[1\] is None; write a message",
    ),
    "a missing column": (
        lines(PAIR, {"prompt": "1+1?", "chosen": "2"}),
        "comparison",
        "DATA:2: no rejected; there are chosen, prompt; correct the row",
    ),
    "an answer that is a number": (
        lines(PAIR, PAIR | {"chosen": 2}),
        "comparison",
        "DATA:2: chosen is 2; write text or a list of",
    ),
    "an unknown role": (
        lines(CHAT, {"messages": [turn("human", "1+1?"), ANSWER]}),
        "demonstration",
        r"DATA:2: messages\[0\].role is 'human'; the roles are .*\('human' is 'user' here\)",
    ),
    "an image": (
        lines(CHAT, {"messages": [turn("user", [{"type": "image", "url": "x"}]), ANSWER]}),
        "demonstration",
        r"DATA:2: messages\[0\].content\[0\] is .*; only text is supported",
    ),
    "half of an emoji": (
        lines(PAIR, PAIR | {"rejected": "\ud83d"}),
        "comparison",
        "DATA:2: rejected: character 1 is .* half of a surrogate pair",
    ),
    "messages as Python text": (
        lines(CHAT, {"messages": str(CHAT["messages"])}),
        "demonstration",
        "DATA:2: messages is text that holds messages, .* store a list",
    ),
    "a dialogue without markers": (
        lines(HH, HH | {"rejected": "No"}),
        "comparison",
        "DATA:2: rejected is 'No'; write a dialogue with a marker before every turn",
    ),
    "scores as text": (
        lines(SCORED, SCORED | {"score_chosen": "8.0"}),
        "comparison",
        "DATA:2: score_chosen is '8.0'; write a number without quotes",
    ),
    "a label 1": (lines(LABELLED, LABELLED | {"label": 1}), "judged", "DATA:2: label is 1, a int; write true"),
    "a label 0": (lines(LABELLED, LABELLED | {"label": 0}), "judged", "DATA:2: label is 0, a int; write true"),
    "a label in quotes": (
        lines(LABELLED, LABELLED | {"label": "true"}),
        "judged",
        "DATA:2: label is 'true', a str; write true .* without quotes",
    ),
    "fewer labels than steps": (
        lines(STEPS, STEPS | {"completions": ["a", "b"]}),
        "steps",
        "DATA:2: 2 completions and 1 labels; write one label per step",
    ),
    "pairs for supervised training": (
        lines(PAIR),
        "demonstration",
        "DATA:1: .* this is data for reward_model, dpo",
    ),
    "completions without labels": (
        lines({"prompt": "1+1?", "completion": "2"}),
        "judged",
        "DATA:1: .* this is data for sft",
    ),
    "columns of other names": (
        lines({"question": "1+1?", "good": "2", "bad": "3"}),
        "comparison",
        "DATA:1: the columns are bad, good, question, as in no known form of data; .* data.columns",
    ),
}
"""The text of a file, what is wanted, and the error, in which DATA stands for the path."""


@pytest.fixture
def converted(tmp_path: Path):
    """Writes a file and converts all of its rows, as a run does."""
    path = tmp_path / "data.jsonl"

    def convert(text: bytes, wanted: Wanted) -> Iterator[object]:
        path.write_bytes(text)
        rows = JsonlRecords(Jsonl(path=str(path)))
        records = [rows[index] for index in range(len(rows))]
        format = choose_format("auto", records[:8], wanted=wanted)
        for unit in format.units(records):
            yield from format.convert(unit)

    return convert


@pytest.mark.parametrize("defect", HARMLESS)
def test_harmless_defects_change_nothing(defect: str, converted):
    text, wanted, count = HARMLESS[defect]
    found = list(converted(text, wanted))
    assert len(found) == count
    assert not any(isinstance(each, Dropped) for each in found)


@pytest.mark.parametrize("defect", COUNTED)
def test_useless_rows_are_dropped_with_a_reason_and_the_others_are_used(defect: str, converted):
    text, wanted, reason = COUNTED[defect]
    found = Counter(each.reason if isinstance(each, Dropped) else "used" for each in converted(text, wanted))
    assert found == {"used": 1, reason: 1}


@pytest.mark.parametrize("defect", REFUSED)
def test_unreadable_rows_are_errors_with_file_line_value_and_remedy(defect: str, converted, tmp_path: Path):
    text, wanted, message = REFUSED[defect]
    with pytest.raises(DataError, match="^" + message.replace("DATA", str(tmp_path / "data.jsonl"), 1)):
        list(converted(text, wanted))
