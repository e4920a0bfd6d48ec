import json

from ray_rl.metrics.trace import TraceWriter


def spans(path):
    return [event for event in json.loads(path.read_text()) if event["ph"] == "X"]


def test_the_file_is_valid_json_after_every_flush_so_also_after_a_kill(tmp_path):
    path = tmp_path / "trace.json"
    trace = TraceWriter(path, name="run")
    assert json.loads(path.read_text()) == []
    for step in range(3):
        trace.add("train", "train", start_s=step, duration_s=0.5, args={})
        trace.flush()
        assert len(spans(path)) == step + 1
    trace.flush()
    trace.close()
    assert len(spans(path)) == 3


def test_spans_are_complete_events_in_microseconds(tmp_path):
    path = tmp_path / "trace.json"
    trace = TraceWriter(path, name="run")
    trace.add("train", "step 1", start_s=1.5, duration_s=0.25, args={"step": 1})
    trace.close()
    expected = {"ph": "X", "name": "step 1", "pid": 1, "tid": 1, "ts": 1_500_000, "dur": 250_000, "args": {"step": 1}}
    assert spans(path) == [expected]


def test_each_row_is_one_named_thread(tmp_path):
    path = tmp_path / "trace.json"
    trace = TraceWriter(path, name="adds")
    for row in ("rollout", "train", "rollout"):
        trace.add(row, row, start_s=0, duration_s=1, args={})
    trace.close()
    names = [
        (event["name"], event["tid"], event["args"]["name"])
        for event in json.loads(path.read_text())
        if event["ph"] == "M"
    ]
    assert names == [("process_name", 0, "adds"), ("thread_name", 1, "rollout"), ("thread_name", 2, "train")]
    assert [event["tid"] for event in spans(path)] == [1, 2, 1]
