import random
from datetime import datetime, timedelta
from itertools import count
from types import SimpleNamespace

import pyarrow
import pyarrow.csv
import pyarrow.parquet
import pytest

from ray_rl.app.examples import load
from ray_rl.config import RunConfig
from ray_rl.config.data import Addition, Csv, Jsonl, Parquet
from ray_rl.data.examples.load import Examples, load_examples
from ray_rl.data.examples.order import ExampleOrder
from ray_rl.data.examples.reading import Reading
from ray_rl.errors import ConfigError, DataError
from tests.unit.data.examples.conftest import LLAMA3, SMOLLM2
from tests.unit.data.formats.converting import turn

PAIR = {"prompt": "6*7?", "chosen": "42", "rejected": "41"}
SAID = [turn("user", "6*7?"), turn("assistant", "42"), turn("user", "Sure?"), turn("assistant", "Yes.")]
START, NEXT = "<|im_start|>assistant\n", "<|im_end|>\n<|im_start|>user\n"


@pytest.fixture(scope="module")
def small(bytes_tokenizer):
    return bytes_tokenizer()


def pairs(tokenizer, data, **changes) -> Examples:
    return load_examples(data, **{"wanted": "comparison", "tokenizer": tokenizer, "note": print} | changes)


def test_a_file_becomes_examples_and_the_user_sees_how_it_is_read(small, jsonl):
    found = pairs(small, Jsonl(path=jsonl(PAIR, PAIR | {"rejected": "42"}, PAIR | {"prompt": "2+2?"}, PAIR)))
    assert [example.id for example in found.train] == ["train.jsonl:1", "train.jsonl:3", "train.jsonl:4"]
    assert found.held_out == []
    assert found.train[0].prompt_ids == small.encode("6*7?", chat=True)
    assert (found.train[0].prompt, found.train[0].texts) == ("6*7?", ("42", "41"))
    text = "\n".join(found.lines)
    assert "train.jsonl is read as preference: " in text
    assert r"<|im_start|>user\n6*7?<|im_end|>\n<|im_start|>assistant\n'" in text
    assert (
        "  chosen: 3 tokens, 3 trained on: '42<|im_end|>'\n  rejected: 3 tokens, 3 trained on: '41<|im_end|>'" in text
    )
    assert "rows: 4; pairs to train on: 3; " in text
    assert "1 left out: chosen and rejected are the same (1)" in text
    assert "1 are the same as an earlier one; data.deduplicate: true leaves them out" in text


def test_the_user_sees_labels_margins_and_the_labels_of_steps(small, jsonl):
    for wanted, row, line in (
        ("judged", {"prompt": "6*7?", "completion": "41", "label": False}, "  label: undesirable"),
        ("judged", {"prompt": "6*7?", "completion": "42", "label": True}, "  label: desirable"),
        ("comparison", PAIR | {"margin": 0.5}, "  margin: 0.5"),
        (
            "steps",
            {"prompt": "6*7?", "completions": ["42", "So 41"], "labels": [True, 0.25]},
            "  answer: 9 tokens, '42\\nSo 41\\n', with labels at the ends of steps: 1, 0.25",
        ),
    ):
        assert line in pairs(small, Jsonl(path=jsonl(row)), wanted=wanted).lines


def test_the_user_sees_how_many_answers_are_desirable_and_that_kto_needs_several_prompts(small, jsonl):
    row = {"prompt": "6*7?", "completion": "42", "label": True}
    path = jsonl(row, row | {"completion": "41", "label": False}, row | {"completion": "Yes"})
    said = []
    config = RunConfig.model_validate(
        {
            "run": {"name": "judged"},
            "model": {"path": str(small.model_tokenizer.folder)},
            "data": {"kind": "jsonl", "path": path},
            "algorithm": {"kind": "kto"},
        }
    )
    with pytest.raises(DataError, match="all 3 examples have the same prompt, but KTO's baseline"):
        load(config, folder=config.model.path, say=said.append)
    assert "data: desirable answers to train on: 2; undesirable: 1" in said


@pytest.mark.parametrize(("label", "words"), [(True, "imitate these with algorithm.kind=sft"), (False, "add some")])
def test_labels_of_one_kind_alone_are_remarked(small, jsonl, label, words):
    row = {"prompt": "6*7?", "completion": "42", "label": label}
    path = jsonl(row, row | {"prompt": "2+2?"})
    remark = f"all answers are {'' if label else 'un'}desirable, and KTO learns from both kinds"
    (line,) = [each for each in pairs(small, Jsonl(path=path), wanted="judged").lines if each.startswith(remark)]
    assert line.endswith(words)
    both = jsonl(row, row | {"prompt": "2+2?", "label": not label})
    assert not any(each.startswith("all ") for each in pairs(small, Jsonl(path=both), wanted="judged").lines)


def test_the_user_sees_how_many_prompts_were_cut_and_which_repeats_were_left_out(small, jsonl):
    path = jsonl(PAIR, PAIR | {"prompt": "a longer question?"}, PAIR)
    size = len(small.encode("6*7?", chat=True)) + 3
    lines = pairs(small, Jsonl(path=path, max_tokens=size, too_long="cut_prompt_left", deduplicate=True)).lines
    assert lines[-2:] == [
        "1 left out: the same as an earlier one (1)",
        f"the prompts of 1 were cut on the left; the longest sequence had {size + 14} tokens, "
        f"and data.max_tokens={size}",
    ]


def test_kinds_of_files_give_the_same_examples(small, jsonl, tmp_path):
    rows = [PAIR, PAIR | {"prompt": "2+2?"}]
    table = pyarrow.Table.from_pylist(rows)
    pyarrow.parquet.write_table(table, tmp_path / "train.parquet")
    pyarrow.csv.write_csv(table, tmp_path / "train.csv")
    sources = [
        Jsonl(path=jsonl(*rows)),
        Parquet(path=str(tmp_path / "train.parquet")),
        Csv(path=str(tmp_path / "train.csv")),
    ]
    found = [[example.digest for example in pairs(small, source).train] for source in sources]
    assert len(found[0]) == 2
    assert all(each == found[0] for each in found)


def test_columns_are_renamed_before_the_format_is_detected(small, jsonl):
    row = {"question": "6*7?", "given": {"good": "42"}, "bad": "41"}
    data = Jsonl(path=jsonl(row), prompt_column="question", columns={"chosen": "given.good", "rejected": "bad"})
    (example,) = pairs(small, data).train
    assert (example.prompt, example.texts) == ("6*7?", ("42", "41"))
    with pytest.raises(
        DataError, match=r"train.jsonl:1: no column 'best'; the columns are .*; correct data.columns.ch"
    ):
        pairs(small, Jsonl(path=jsonl(row), columns={"chosen": "best"}))


def test_a_column_loses_its_old_name_so_that_chosen_answers_can_be_imitated(small, jsonl):
    data = Jsonl(path=jsonl(PAIR), columns={"completion": "chosen"})
    (example,) = pairs(small, data, wanted="demonstration").train
    assert example.texts == ("42",)


def test_the_format_is_found_behind_rows_that_are_wrong(small, jsonl):
    path = jsonl({"prompt": "6*7?"}, "{", PAIR)
    (example,) = pairs(small, Jsonl(path=path, on_bad_row="skip")).train
    assert example.id == "train.jsonl:3"


def test_wrong_rows_are_errors_with_the_places_of_the_others(small, jsonl):
    path = jsonl(PAIR, "{", PAIR | {"chosen": None}, PAIR | {"rejected": 7}, PAIR)
    with pytest.raises(DataError, match=r"^train.jsonl:2: not JSON: .*\n2 more rows are wrong: .*:3.*, .*:4") as raised:
        pairs(small, Jsonl(path=path))
    assert "at least" not in str(raised.value)
    found = pairs(small, Jsonl(path=path, on_bad_row="skip"))
    assert len(found.train) == 2
    assert found.lines[-1].startswith("3 of 5 rows are wrong and left out; the first: train.jsonl:2: not JSON")
    many = jsonl(PAIR, *["{"] * 9)
    with pytest.raises(DataError, match=r"\nat least 4 more rows are wrong"):
        pairs(small, Jsonl(path=many))


def test_a_template_that_refuses_a_row_is_told_with_the_place_of_the_row(bytes_tokenizer, jsonl):
    tokenizer = bytes_tokenizer("{{ raise_exception('no') if messages|length > 1 }}" + LLAMA3)
    turns = [{"role": role, "content": role} for role in ("user", "assistant", "user", "assistant")]
    path = jsonl({"messages": turns[:2]}, {"messages": turns})
    with pytest.raises(DataError, match=r"^train.jsonl:2: the chat template of .* refuses roles"):
        pairs(tokenizer, Jsonl(path=path), wanted="demonstration")


def test_data_of_which_nothing_is_left_is_refused_with_the_reasons(small, jsonl):
    path = jsonl(PAIR | {"chosen": "41"}, PAIR, PAIR | {"chosen": "4<|im_end|>2"})
    with pytest.raises(DataError) as caught:
        pairs(small, Jsonl(path=path, max_tokens=9))
    assert str(caught.value) == (
        "train.jsonl: none of 3 rows can be used: chosen and rejected are the same (1); more than data.max_tokens=9 "
        "(1); an answer with the token that ends a turn inside it (1)"
    )
    # A limit that the user wants to be kept is no wrong row that may be left out.
    with pytest.raises(DataError, match=r"^train.jsonl:2: \d+ tokens, more than data.max_tokens=9"):
        pairs(small, Jsonl(path=path, max_tokens=9, too_long="error", on_bad_row="skip"))


def test_every_wrong_row_is_told_where_rows_belong_together(small, jsonl):
    rows = [{"prompt": prompt, "response": "42", "helpfulness": "4"} for prompt in ("6*7?", "2+2?")]
    with pytest.raises(DataError, match=r"^train.jsonl:1: helpfulness .*\n1 more row is wrong: train.jsonl:2$"):
        pairs(small, Jsonl(path=jsonl(*rows)))
    with pytest.raises(DataError, match=r"^train.jsonl:2: not JSON.*\n1 more row is wrong: train.jsonl:1$"):
        pairs(small, Jsonl(path=jsonl(rows[0], "{")))


def test_a_reading_that_ends_early_converts_no_rows_without_those_that_belong_to_them(jsonl, monkeypatch):
    columns = {"message_tree_id": "t", "text": "Ebro?", "role": "assistant", "rank": 0}
    answer, question = columns | {"message_id": "a", "parent_id": "q"}, columns | {"message_id": "q", "parent_id": None}
    reading = Reading(Jsonl(path=jsonl(answer, question)), wanted="comparison", note=print)
    clock = count()
    monkeypatch.setattr("ray_rl.data.examples.reading.time", SimpleNamespace(monotonic=lambda: next(clock)))
    # The start and the first row are read in time.
    assert list(reading.units(until=1)) == []
    assert reading.faults == {}
    ((row, _),) = reading.units()
    assert row.id == "train.jsonl:1"


@pytest.mark.parametrize(
    ("wanted", "row", "data", "settings", "prompt", "trained"),
    [
        ("comparison", PAIR, {"chat": False}, {}, "6*7?", "42<|im_end|>"),
        ("comparison", PAIR, {}, {"rendered": True}, START, "42<|im_end|>\n"),
        ("comparison", PAIR, {"system_prompt": "Rhyme."}, {}, f"Rhyme.{NEXT}6*7?<|im_end|>\n{START}", "42<|im_end|>"),
        (
            "demonstration",
            {"messages": SAID},
            {},
            {"train_on": "last_turn"},
            f"Sure?<|im_end|>\n{START}",
            "Yes.<|im_end|>",
        ),
        ("steps", {"prompt": "6*7?", "completions": ["42"], "labels": [True]}, {}, {"separator": ";"}, START, ";"),
    ],
    ids=["chat", "rendered", "system_prompt", "train_on", "separator"],
)
def test_the_settings_of_a_run_decide_what_is_trained_on_after_what(
    small, jsonl, wanted, row, data, settings, prompt, trained
):
    (found,) = pairs(small, Jsonl(path=jsonl(row), **data), wanted=wanted, **settings).train
    answer = found.answers[0]
    decode = small.model_tokenizer.decode
    assert decode(found.prompt_ids, skip_special_tokens=False).endswith(prompt)
    assert decode(answer.token_ids[answer.loss_mask].tolist(), skip_special_tokens=False) == trained


def test_the_records_of_one_row_have_different_ids(small, jsonl):
    steps = [{"completions": [{"text": "42", "rating": 1}, {"text": "41", "rating": -1}], "chosen_completion": 0}]
    path = jsonl({"question": {"problem": "6*7?"}, "label": {"steps": steps}})
    found = pairs(small, Jsonl(path=path), wanted="steps")
    assert [example.id for example in found.train] == ["train.jsonl:1/1", "train.jsonl:1/2"]


def test_generated_questions_have_nothing_to_learn_from(small):
    with pytest.raises(ConfigError, match=r"data.kind=addition generates questions without answers"):
        pairs(small, Addition())


def test_a_prompt_is_never_on_both_sides_and_the_sides_do_not_depend_on_the_order(small, jsonl):
    rows = [PAIR | {"prompt": f"question {number % 40}", "chosen": str(number)} for number in range(120)]
    found = pairs(small, Jsonl(path=jsonl(*rows), held_out=0.25))
    sides = [{example.prompt for example in side} for side in (found.train, found.held_out)]
    assert len(sides[0] | sides[1]) == 40
    assert not sides[0] & sides[1]
    again = pairs(small, Jsonl(path=jsonl(*random.Random(1).sample(rows, len(rows))), held_out=0.25))
    assert {example.digest for example in again.held_out} == {example.digest for example in found.held_out}
    assert any(f"pairs to train on: {len(found.train)}, {len(found.held_out)} held out" in line for line in found.lines)


def test_a_share_that_leaves_one_side_empty_is_refused(small, jsonl):
    with pytest.raises(DataError, match=r"data.held_out=0.01: of 1 examples, none is held out; a hash of the prompt"):
        pairs(small, Jsonl(path=jsonl(PAIR), held_out=0.01))


def test_the_digests_of_data_tell_other_examples_and_no_other_template(small, bytes_tokenizer, jsonl):
    path = jsonl(PAIR, PAIR | {"prompt": "a longer question?"})
    name = "the list of examples"
    usual = pairs(small, Jsonl(path=path)).digests
    assert set(usual) == {"train.jsonl", name}
    assert pairs(bytes_tokenizer(LLAMA3), Jsonl(path=path)).digests == usual  # its tokens have a digest of their own
    fewer = pairs(small, Jsonl(path=path, max_tokens=110))
    assert [example.id for example in fewer.train] == ["train.jsonl:1"]
    assert fewer.digests[name] != usual[name]
    assert fewer.digests["train.jsonl"] == usual["train.jsonl"]


def resumed_with(before: Examples, now: Examples) -> None:
    ExampleOrder(now, shuffle=True, seed=0).compare(ExampleOrder(before, shuffle=True, seed=0).state())


def test_a_resume_with_an_edited_chat_template_is_refused(small, bytes_tokenizer, jsonl):
    data = Jsonl(path=jsonl(*[PAIR | {"prompt": f"{number}*7?"} for number in range(20)]), held_out=0.5)
    before = pairs(small, data)
    resumed_with(before, pairs(small, data))
    edited = pairs(bytes_tokenizer(SMOLLM2.replace("a helpful", "an edited")), data)
    with pytest.raises(ConfigError) as raised:
        resumed_with(before, edited)
    assert str(raised.value) == (
        "model.path: the examples have other tokens than when the run started, though the data is the same: its chat "
        "template or tokenizer was edited since, or ray_rl was updated and tokenises otherwise; put the old files "
        "back, or start another run"
    )
    # Where the data differs too, that is what the user should look at.
    other = pairs(bytes_tokenizer(LLAMA3), Jsonl(path=jsonl(PAIR)))
    with pytest.raises(ConfigError, match=r"the content of train.jsonl has changed"):
        resumed_with(before, other)


def test_a_resume_with_other_masks_is_refused(bytes_tokenizer, jsonl):
    data = Jsonl(path=jsonl({"messages": SAID}))
    end = SMOLLM2.replace("message['content'] + '<|im_end|>'", "message['content'] ~ '<|im_end|>'")
    halves = [
        pairs(bytes_tokenizer(template), data, wanted="demonstration", train_on=train_on)
        for template, train_on in ((SMOLLM2, "assistant"), (end, "assistant"), (SMOLLM2, "all"))
    ]
    resumed_with(halves[0], halves[1])  # edited, but with the same tokens
    with pytest.raises(ConfigError, match="other tokens than when the run started"):
        resumed_with(halves[0], halves[2])


def test_a_template_that_writes_today_s_date_may_be_resumed_tomorrow_but_not_edited(
    bytes_tokenizer, jsonl, monkeypatch
):
    data, dated = Jsonl(path=jsonl(PAIR)), "<s>{{ strftime_now('%d %b %Y') }}" + LLAMA3
    before = pairs(bytes_tokenizer(dated), data)

    class Tomorrow(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.now() + timedelta(days=1)

    monkeypatch.setattr("ray_rl.data.bounded_jinja.datetime", Tomorrow)
    tomorrow = pairs(bytes_tokenizer(dated), data)
    assert tomorrow.train[0].digest != before.train[0].digest
    resumed_with(before, tomorrow)
    with pytest.raises(ConfigError, match="other tokens than when the run started"):
        resumed_with(before, pairs(bytes_tokenizer(dated.replace("%Y", "%y")), data))


def test_a_checkpoint_without_a_digest_of_tokens_may_be_resumed(small, jsonl):
    examples = pairs(small, Jsonl(path=jsonl(PAIR)))
    state = ExampleOrder(examples, shuffle=True, seed=0).state()
    del state["tokens"]
    ExampleOrder(examples, shuffle=True, seed=0).compare(state)


def test_long_work_tells_its_progress(small, jsonl, monkeypatch):
    monkeypatch.setattr("ray_rl.data.examples.reading.PROGRESS_S", 0.0)
    told: list[str] = []
    pairs(small, Jsonl(path=jsonl(PAIR, PAIR, PAIR)), note=told.append)
    assert told[-1].startswith("data: 2 of 3 rows read in ")
