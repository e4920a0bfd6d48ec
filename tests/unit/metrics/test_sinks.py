import json
import math

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ray_rl.metrics.sinks import (
    ExampleRecords,
    JsonlSink,
    RecordSink,
    RolloutRecords,
    TensorBoardSink,
    strict_json,
    version_spans,
)
from ray_rl.types import Answer, Example, Message, ToolCall, Turn
from tests.make import completion, group, rollout


def read_lines(path):
    return [json.loads(line, parse_constant=pytest.fail) for line in path.read_text().splitlines()]


def test_a_line_is_on_disk_when_write_returns(tmp_path):
    sink = JsonlSink(tmp_path / "metrics.jsonl")
    sink.write({"step": 1, "reward/mean": 0.5})
    assert read_lines(tmp_path / "metrics.jsonl") == [{"step": 1, "reward/mean": 0.5}]
    sink.close()


def test_what_json_does_not_have_is_written_as_null():
    value = {"a": math.nan, "b": [math.inf, 1.5], "c": {"d": -math.inf}}
    assert json.loads(strict_json(value)) == {"a": None, "b": [None, 1.5], "c": {"d": None}}


def test_tensorboard_reads_back_every_value_at_its_step(tmp_path):
    sink = TensorBoardSink(tmp_path)
    sink.write({"step": 1, "reward/mean": 0.25})
    sink.write({"step": 2, "reward/mean": 0.5})
    sink.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("reward/mean")] == [(1, 0.25), (2, 0.5)]
    assert events.Tags()["scalars"] == ["reward/mean"]


def test_a_sample_is_recorded_with_all_that_explains_it(tmp_path, make_group):
    made = make_group([1.0, None], lengths=[3, 4], versions=[[6, 6, 7], [7, 7, 7, 7]])
    path = RecordSink(tmp_path).write(12, RolloutRecords([made], [0.5, -0.5]))
    assert path.name == "step_000012.jsonl"
    first, second = read_lines(path)
    assert first == {
        "step": 12,
        "prompt_id": "addition/17",
        "prompt": "What is 17+25?",
        "columns": {"answer": "42"},
        "completion": "42",
        "reward": 1.0,
        "reward_parts": {"number": 1.0},
        "advantage": 0.5,
        "finish_reason": "stop",
        "length": 3,
        "versions": [[6, 2], [7, 1]],
        "token_ids": [0, 1, 2],
    }
    assert (second["reward"], second["advantage"], second["versions"]) == (None, -0.5, [[7, 4]])


def test_an_example_is_recorded_with_what_is_known_of_it(tmp_path):
    answer = Answer(np.array([5, 6, 7], np.int32), np.array([True, False, True]))
    judged = Example(id="a:1", prompt_ids=(3, 4), answers=(answer,), label=False, prompt="2+2?", texts=("5",))
    pair = Example(id="a:2", prompt_ids=(3,), answers=(answer, answer), margin=0.0, prompt="a\ud800b", texts=("4", "5"))
    records = ExampleRecords([judged, pair], values={"a:2": {"chosen_reward": 0.5, "reward_margin": float("nan")}})
    assert records.tokens == 5 + 7
    assert read_lines(RecordSink(tmp_path).write(2, records)) == [
        {
            "step": 2,
            "id": "a:1",
            "prompt": "2+2?",
            "answers": ["5"],
            "label": False,
            "prompt_tokens": 2,
            "tokens": [3],
            "trained_tokens": [2],
        },
        {
            "step": 2,
            "id": "a:2",
            "prompt": "a\ud800b",
            "answers": ["4", "5"],
            "margin": 0.0,
            "prompt_tokens": 1,
            "tokens": [3, 3],
            "trained_tokens": [2, 2],
            "chosen_reward": 0.5,
            "reward_margin": None,
        },
    ]


def test_token_ids_of_any_size_and_number_are_written_as_they_are(tmp_path, make_group):
    sink = RecordSink(tmp_path)
    for step, tokens in enumerate(([7], [0, 10, 9], [151_935, 0, 100], [300_000, 1], [])):
        made = make_group([1.0], lengths=[len(tokens)])
        made.rollouts[0].token_ids[:] = tokens
        assert read_lines(sink.write(step, RolloutRecords([made])))[0]["token_ids"] == tokens


def test_without_advantages_the_record_says_null(tmp_path, make_group):
    path = RecordSink(tmp_path).write(1, RolloutRecords([make_group([1.0])]))
    assert read_lines(path)[0]["advantage"] is None


def test_advantages_of_another_number_than_the_rollouts_are_refused(tmp_path, make_group):
    with pytest.raises(ValueError, match="zip"):
        RecordSink(tmp_path).write(1, RolloutRecords([make_group([1.0, 0.0])], [0.5]))


def test_columns_that_are_not_json_are_left_out(tmp_path, make_group):
    columns = {"answer": "42", "image": np.zeros(2), "terms": [17, 25], "meta": {"level": 1}, "pair": (1, object())}
    path = RecordSink(tmp_path).write(1, RolloutRecords([make_group([1.0], columns=columns)]))
    assert read_lines(path)[0]["columns"] == {"answer": "42", "terms": [17, 25], "meta": {"level": 1}}


def test_text_that_is_not_unicode_is_recorded_all_the_same(tmp_path, make_group):
    path = RecordSink(tmp_path).write(1, RolloutRecords([make_group([1.0], text="a\ud800b\n\x1b[31m")]))
    assert read_lines(path)[0]["completion"] == "a\ud800b\n\x1b[31m"


def test_versions_are_run_lengths_in_order():
    assert version_spans(np.array([3, 3, 4, 3], np.int32)) == [[3, 2], [4, 1], [3, 1]]
    assert version_spans(np.array([], np.int32)) == []


def test_an_episode_is_recorded_as_it_reads_and_counts_what_the_policy_sampled(tmp_path):
    reply = Turn((7, 8), completion(1, "4", versions=3), messages=(Message("tool", "2+2=4"),))
    episode = rollout(completion(2, "2+2=?", versions=2), reply, reward=1.0, stop="turns")
    (record,) = read_lines(RecordSink(tmp_path).write(1, RolloutRecords([group(episode)])))
    assert record["completion"] == "2+2=?\n2+2=4\n4"
    assert record["token_ids"] == [0, 1, 7, 8, 0]
    assert (record["length"], record["versions"]) == (3, [[2, 2], [-1, 2], [3, 1]])
    assert record["finish_reason"] == "turns"


def test_an_episode_with_an_environment_is_recorded_turn_by_turn_with_its_whole_reward(tmp_path):
    call, message = ToolCall("add", {"a": 2}), Message("tool", "4")
    asked = Turn((), completion(2, "2+2=?"), 0.25, tool_calls=(call,), metrics={"calls": 1.0})
    told = Turn((7,), completion(1, "4"), 0.5, (message,), metrics={"calls": 0.0})
    (record,) = read_lines(RecordSink(tmp_path).write(1, RolloutRecords([group(rollout(asked, told, reward=1.0))])))
    assert record["reward"] == 1.75
    first, second = record["turns"]
    assert first == {
        "messages": [],
        "completion": "2+2=?",
        "reward": 0.25,
        "tool_calls": [{"name": "add", "arguments": {"a": 2}, "error": None}],
        "metrics": {"calls": 1.0},
    }
    assert (second["messages"], second["tool_calls"]) == ([{"role": "tool", "content": "4"}], [])


def test_records_that_were_begun_get_their_name_when_their_step_is_written(tmp_path, make_group):
    records = RolloutRecords([make_group([1.0, 0.0])], [0.5, -0.5])
    expected = RecordSink(tmp_path / "at_once").write(3, records).read_bytes()
    sink = RecordSink(tmp_path / "begun")
    sink.begin(3, records)
    assert not (tmp_path / "begun" / "step_000003.jsonl").exists()
    assert sink.write(3, records).read_bytes() == expected
    sink.close()
    assert [path.name for path in (tmp_path / "begun").iterdir()] == ["step_000003.jsonl"]


@pytest.mark.parametrize("ending", ["begin", "write", "discard", "close"])
def test_records_of_a_step_that_was_begun_and_not_trained_leave_no_file(tmp_path, make_group, ending):
    lost, trained = (RolloutRecords([make_group([1.0], prompt_id=name)]) for name in ("lost", "trained"))
    sink = RecordSink(tmp_path)
    sink.begin(1, lost)
    match ending:
        case "begin":
            sink.begin(1, trained)
        case "discard":
            sink.discard()
        case "close":
            sink.close()
            assert list(tmp_path.iterdir()) == []
            return
    (record,) = read_lines(sink.write(1, trained))
    assert record["prompt_id"] == "trained"
    sink.close()
    assert [path.name for path in tmp_path.iterdir()] == ["step_000001.jsonl"]
