import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_rl.config.data import Addition, Jsonl
from ray_rl.data.opening import open_rows
from ray_rl.data.source import Filtered, build_source
from ray_rl.errors import ConfigError, DataError

GSM8K = Path(__file__).parents[3] / "../shared/data/gsm8k/train.jsonl"


def numbered(prompts):
    return [int(prompt.id.split("/")[1]) for prompt in prompts]


def addition(tokenizer, *, seed=0, **changes):
    return build_source(Addition(**({"size": 7, "maximum": 9} | changes)), seed=seed, tokenizer=tokenizer)


def test_an_epoch_holds_every_row_once_and_the_next_has_another_order(tokenizer):
    source = addition(tokenizer)
    first, second = numbered(source.take(7)), numbered(source.take(7))
    assert sorted(first) == sorted(second) == list(range(7))
    assert first != second


def test_without_shuffling_the_order_is_that_of_the_source(tokenizer):
    assert numbered(addition(tokenizer, shuffle=False).take(9)) == [0, 1, 2, 3, 4, 5, 6, 0, 1]


def test_the_order_depends_on_the_seed_and_on_nothing_else(tokenizer):
    assert numbered(addition(tokenizer).take(20)) == numbered(addition(tokenizer).take(20))
    assert numbered(addition(tokenizer).take(7)) != numbered(addition(tokenizer, seed=1).take(7))


@settings(max_examples=50, deadline=None)
@given(
    size=st.integers(1, 9),
    seed=st.integers(0, 3),
    shuffle=st.booleans(),
    limit=st.integers(14, 40),
    before=st.lists(st.integers(0, 12), max_size=3),
    after=st.lists(st.integers(0, 12), min_size=1, max_size=3),
)
def test_a_restored_source_goes_on_exactly_where_it_was(tokenizer, size, seed, shuffle, limit, before, after):
    """Whatever was taken before and in whatever portions, epochs crossed and long prompts filtered on the way."""

    def make():
        # One token a digit: questions have 14, 15 or 16 tokens, so that some limits filter.
        return addition(tokenizer, seed=seed, size=size, maximum=20, shuffle=shuffle, max_prompt_tokens=limit)

    uninterrupted = make()
    try:
        for count in before:
            uninterrupted.take(count)
    except DataError:  # all of them are too long: nothing to go on with
        return
    restored = make()
    restored.restore(json.loads(json.dumps(uninterrupted.state())))
    for count in after:
        try:
            expected = uninterrupted.take(count)
        except DataError as error:
            with pytest.raises(DataError) as raised:
                restored.take(count)
            assert str(raised.value) == str(error)
            return
        assert restored.take(count) == expected
        assert restored.filtered == uninterrupted.filtered
        assert restored.state() == uninterrupted.state()


def test_the_state_has_the_form_that_existing_checkpoints_have(tokenizer):
    source = addition(tokenizer)
    source.take(9)
    assert source.state() == {
        "source": {"kind": "addition", "size": 7, "seed": 0, "shuffle": True, "digests": {}},
        "epoch": 1,
        "index": 2,
        "filtered": 0,
        "filtered_before": 0,
        "shortest": None,
        "skipped": 0,
        "skipped_before": 0,
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"size": 8}, "size was 7, is 8"), ({"seed": 1}, "seed was 0, is 1"), ({"shuffle": False}, "shuffle was True")],
)
def test_the_position_of_another_source_is_refused(tokenizer, changes, message):
    with pytest.raises(ConfigError, match=f"belongs to another source: {message}"):
        addition(tokenizer, **changes).restore(addition(tokenizer).state())


def test_prompts_that_are_too_long_are_filtered_and_counted_by_epoch_and_in_all(tokenizer, jsonl):
    path = jsonl({"prompt": "What"}, {"prompt": "What is a deep deep thought"}, {"prompt": "What is"})
    source = build_source(Jsonl(path=path, max_prompt_tokens=5, shuffle=False), seed=0, tokenizer=tokenizer)
    assert [prompt.id for prompt in source.take(2)] == ["train.jsonl:1", "train.jsonl:3"]
    assert source.filtered == Filtered(epoch=1, total=1)
    source.take(1)
    assert source.filtered == Filtered(epoch=0, total=1)
    source.take(1)
    assert source.filtered == Filtered(epoch=1, total=2)
    assert {metric.name: metric.value for metric in source.metrics()} == {"data/epoch": 1, "data/filtered_total": 2}


def test_a_limit_that_filters_a_whole_epoch_is_refused_with_the_length_to_allow(tokenizer, jsonl):
    path = jsonl({"prompt": "What is a"}, {"prompt": "What is"})
    source = build_source(Jsonl(path=path, max_prompt_tokens=3), seed=0, tokenizer=tokenizer)
    with pytest.raises(DataError, match=r"data.max_prompt_tokens=3: all 2 prompts are longer; .* set it to 5 or more"):
        source.take(1)


def test_the_system_prompt_comes_first_and_the_text_is_the_last_user_message(tokenizer, jsonl):
    turns = [{"role": role, "content": text} for role, text in [("user", "What"), ("assistant", "a"), ("user", "is")]]
    path = jsonl({"prompt": turns, "answer": 1})
    source = build_source(Jsonl(path=path, system_prompt="Be brief"), seed=0, tokenizer=tokenizer)
    (prompt,) = source.take(1)
    system = tokenizer.encode("Be brief", chat=False)
    assert prompt.token_ids[1 : 1 + len(system)] == system
    assert (prompt.text, prompt.columns) == ("is", {"answer": 1})


def test_a_second_system_prompt_is_refused(tokenizer, jsonl):
    path = jsonl({"prompt": [{"role": "system", "content": "Be deep"}, {"role": "user", "content": "What"}]})
    source = build_source(Jsonl(path=path, system_prompt="Be brief"), seed=0, tokenizer=tokenizer)
    with pytest.raises(DataError, match=r"train.jsonl:1: starts with a system message, and data.system_prompt"):
        source.take(1)


@pytest.mark.skipif(not GSM8K.is_file(), reason="GSM8K is not at ../shared/data/gsm8k/train.jsonl")
def test_gsm8k_is_read_by_naming_its_prompt_column(tokenizer):
    config = Jsonl(path=str(GSM8K), prompt_column="question", shuffle=False)
    source = build_source(config, seed=0, tokenizer=tokenizer)
    (prompt,) = source.take(1)
    assert prompt.id == "train.jsonl:1"
    assert prompt.columns["answer"].endswith("#### 72")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("two", "six"), "the content of train.jsonl has changed"),
        (lambda text: text.replace('"1"', '"2"'), "the content of train.jsonl has changed"),
        (lambda text: text + '{"prompt": "three"}\n', "size was 2, is 3; the content of train.jsonl has changed"),
    ],
)
def test_data_that_changed_under_the_run_is_refused_at_its_resume(tokenizer, jsonl, tmp_path, change, message):
    path = jsonl({"prompt": "one", "answer": "1"}, {"prompt": "two"}, "")
    state = json.loads(json.dumps(build_source(Jsonl(path=path), seed=0, tokenizer=tokenizer).state()))
    build_source(Jsonl(path=path), seed=0, tokenizer=tokenizer).restore(state)
    file = tmp_path / "train.jsonl"
    file.write_text(change(file.read_text()))
    with pytest.raises(ConfigError, match=f"belongs to another source: {message}; resume with the data"):
        build_source(Jsonl(path=path), seed=0, tokenizer=tokenizer).restore(state)


def test_a_file_that_was_added_or_removed_is_named_at_the_resume(tokenizer, tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text('{"prompt": "one"}\n')
    state = build_source(Jsonl(path=str(tmp_path)), seed=0, tokenizer=tokenizer).state()
    (tmp_path / "b.jsonl").rename(tmp_path / "c.jsonl")
    with pytest.raises(ConfigError, match=r"c.jsonl is new; b.jsonl is missing"):
        build_source(Jsonl(path=str(tmp_path)), seed=0, tokenizer=tokenizer).restore(state)


def test_a_checkpoint_without_a_digest_of_the_data_resumes_with_a_note(tokenizer, jsonl):
    path = jsonl({"prompt": "What"}, {"prompt": "is"})
    notes = []
    source = build_source(Jsonl(path=path), seed=0, tokenizer=tokenizer, note=notes.append)
    state = source.state()
    source.restore(state)
    assert notes == []
    del state["source"]["digests"]
    source.restore(state)
    assert notes == ["data: the checkpoint has no digest of the data; whether the data changed cannot be told"]


def test_a_large_file_is_told_from_another_by_samples_of_its_bytes(tokenizer, jsonl, tmp_path, monkeypatch):
    monkeypatch.setattr("ray_rl.data.files.WHOLE_BYTES", 1000)
    monkeypatch.setattr("ray_rl.data.files.BLOCK_BYTES", 100)
    path = jsonl(*({"prompt": f"question {i}"} for i in range(500)))
    source = build_source(Jsonl(path=path), seed=0, tokenizer=tokenizer)
    assert source.state()["source"]["digests"]["train.jsonl"].startswith("blake2b-sampled:")
    assert "compares only samples" in open_rows(Jsonl(path=path), seed=0).notes[0]
    file = tmp_path / "train.jsonl"
    file.write_text(file.read_text()[:-2] + "!}")
    with pytest.raises(ConfigError, match=r"the content of train.jsonl has changed"):
        build_source(Jsonl(path=path), seed=0, tokenizer=tokenizer).restore(source.state())


def test_wrong_rows_are_left_out_and_counted_where_the_user_wants_it(tokenizer, jsonl):
    bad = [
        {"prompt": "cut \ud83d"},
        "{",
        {"prompt": [{"role": "user", "content": "a"}, {"role": "tool", "content": "b"}]},
    ]
    path = jsonl({"prompt": "What"}, *bad, {"prompt": "is"})
    source = build_source(Jsonl(path=path, shuffle=False, on_bad_row="skip"), seed=0, tokenizer=tokenizer)
    assert [prompt.id for prompt in source.take(3)] == ["train.jsonl:1", "train.jsonl:5", "train.jsonl:1"]
    source.take(1)
    assert {metric.name: metric.value for metric in source.metrics()}["data/skipped_total"] == 6
    path = jsonl({"prompt": " "}, {"prompt": None})
    # The layout is that of the first line; both prompts are wrong.
    source = build_source(Jsonl(path=path, on_bad_row="skip"), seed=0, tokenizer=tokenizer)
    with pytest.raises(DataError, match=r"data.on_bad_row=skip: all 2 rows are wrong"):
        source.take(1)
