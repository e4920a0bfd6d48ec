"""Converts small files of each published form, and a sample of HH-RLHF, which lie beside the repository."""

import gzip
import json
from collections import Counter
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from ray_rl.config.data import Jsonl, Parquet
from ray_rl.data.formats.choose import FORMATS, choose_format
from ray_rl.data.formats.record import RECORDS, Dropped
from ray_rl.data.json_lines import JsonlRecords
from ray_rl.data.tables import ArrowRecords
from tests.unit.data.formats.converting import convert, source_records

SHARED = Path(__file__).parents[5] / "shared" / "data"
needs_samples = pytest.mark.skipif(not (SHARED / "formats").is_dir(), reason=f"{SHARED}/formats is not here")
needs_hh = pytest.mark.skipif(not (SHARED / "hh-rlhf").is_dir(), reason=f"{SHARED}/hh-rlhf is not here")

TIE = "no answer is better than another"
DIFFERENT = "the two dialogues differ before their last answers"
FILES = {
    "alpaca": ("alpaca", 5, {}),
    "helpsteer2": ("helpsteer2", 2, {"fewer than two answers to a prompt": 1}),
    "helpsteer2_preference": ("helpsteer2_preference", 4, {TIE: 1}),
    "hh_rlhf": ("hh_rlhf", 3, {DIFFERENT: 1, "an empty answer": 1}),
    "kto": ("kto", 5, {}),
    "kto_text": ("kto", 5, {}),
    "math_shepherd": ("math_shepherd", 5, {}),
    "nectar": ("nectar", 5, {}),
    "openai_messages": ("messages", 4, {"tools or calls of tools, which are not supported": 1}),
    "openai_preference": ("openai_preference", 5, {}),
    "openassistant": ("openassistant", 1, {}),
    "prm800k": ("prm800k", 8, {"a problem that the labeler found bad": 1}),
    "sharegpt": ("sharegpt", 4, {"no answer of the assistant at the end": 1}),
    "sharegpt_preference": ("preference", 5, {}),
    "trl_preference_conversational": ("preference", 5, {}),
    "trl_preference_implicit": ("preference", 5, {}),
    "trl_preference_text": ("preference", 5, {}),
    "trl_prompt_completion": ("prompt_completion", 5, {}),
    "trl_stepwise": ("stepwise", 5, {}),
    "ultrafeedback_binarized": ("preference", 3, {TIE: 2}),
    "ultrafeedback_raw": ("ultrafeedback", 5, {}),
}
"""For each file of five rows: the form it is taken for, the number of records, and why others were dropped."""


@needs_samples
def test_the_files_are_those_of_the_table():
    assert {path.stem for path in (SHARED / "formats").glob("*.jsonl")} == FILES.keys()


@needs_samples
@pytest.mark.parametrize("stem", FILES)
def test_a_file_is_taken_for_its_form_and_every_row_gives_a_record_or_a_reason(stem: str):
    name, count, reasons = FILES[stem]
    lines = (SHARED / "formats" / f"{stem}.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert len(rows) == 5
    assert choose_format("auto", source_records(*rows), wanted=FORMATS[name].wanted).name == name
    found = convert(name, *rows)
    assert Counter(each.reason for each in found if isinstance(each, Dropped)) == reasons
    records = [each for each in found if not isinstance(each, Dropped)]
    assert len(records) == count
    assert {type(record) for record in records} == {RECORDS[FORMATS[name].wanted]}


@needs_samples
@pytest.mark.parametrize("stem", FILES)
def test_a_table_gives_the_same_records_although_it_fills_missing_keys_with_null(stem: str, tmp_path: Path):
    path = SHARED / "formats" / f"{stem}.jsonl"
    lines = JsonlRecords(Jsonl(path=str(path)))
    rows = [lines[index].content for index in range(len(lines))]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "table.parquet")
    table = ArrowRecords(Parquet(path=str(tmp_path / "table.parquet")))
    name = FILES[stem][0]
    assert convert(name, *(table[index].content for index in range(len(table)))) == convert(name, *rows)


@needs_hh
def test_2303_of_2312_pairs_of_the_hh_rlhf_sample_are_usable():
    with gzip.open(SHARED / "hh-rlhf" / "harmless-base-test.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    assert len(rows) == 2312
    assert choose_format("auto", source_records(*rows[:8]), wanted="comparison").name == "hh_rlhf"
    found = Counter(each.reason if isinstance(each, Dropped) else "used" for each in convert("hh_rlhf", *rows))
    assert found == {"used": 2303, DIFFERENT: 5, "an empty answer": 4}
