import asyncio
import io
import json
import time

import pytest

from ray_rl.app.records import columns_of, open_run
from ray_rl.errors import RecordError
from ray_rl.metrics.console import RunConsole
from ray_rl.metrics.metric import Last, Mean
from ray_rl.metrics.prometheus import GaugeSink
from ray_rl.metrics.run import Run
from ray_rl.metrics.sinks import RolloutRecords
from ray_rl.metrics.text import Sample
from tests.run_folders import new_run_folder


class Started:
    def __init__(self, config, clock) -> None:
        self.stream = io.StringIO()
        self.folder = new_run_folder(config)
        self.run = open_run(config, self.folder, RunConsole(self.stream), clock=clock)

    @property
    def lines(self):
        return self.stream.getvalue().splitlines()


@pytest.fixture
def start(make_config, clock):
    started = []

    def make(**run):
        started.append(Started(make_config(**run), clock))
        return started[-1]

    yield make
    for one in started:
        one.run.close()


def do_step(run, clock, group):
    with run.phase("rollout"):
        clock.pass_s(6)
    with run.phase("train"):
        clock.pass_s(3)
    with run.phase("sync"):
        clock.pass_s(1)
        run.advance()
    return run.log(
        [Mean("policy/entropy", 4.0, 2), Mean("reward/mean", group.rollouts[0].reward, 1)], RolloutRecords([group])
    )


def test_a_step_returns_exactly_the_promised_keys(start, clock, make_group):
    values = do_step(start().run, clock, make_group([1.0, 0.0], lengths=[4, 6]))
    assert values == {
        "step": 1,
        "version": 1,
        "reward/mean": 1.0,
        "time/step_s": 10.0,
        "time/rollout_s": 6.0,
        "time/train_s": 3.0,
        "time/sync_s": 1.0,
        "throughput/tokens_per_s": 1.0,
        "policy/entropy": 2.0,
    }


def test_gauges_say_what_metrics_jsonl_says(make_config, clock, make_group):
    config, gauges = make_config(), {}
    folder = new_run_folder(config)
    sink = GaugeSink(gauges.__setitem__)
    shown = {"columns": columns_of(config), "records": folder.rollouts, "uses": {}}
    with Run(config.run, folder, RunConsole(io.StringIO()), **shown, gauges=sink, clock=clock) as run:
        do_step(run, clock, make_group([1.0, 0.0]))
    (written,) = [json.loads(line) for line in folder.metrics_jsonl.read_text().splitlines()]
    assert gauges == {"ray_rl_" + key.replace("/", "_"): value for key, value in written.items()}


def test_every_step_is_one_line_of_metrics_and_one_file_of_samples(start, clock, make_group):
    started = start()
    returned = [do_step(started.run, clock, make_group([1.0, 0.0], versions=[[v] * 3] * 2)) for v in range(3)]
    written = [json.loads(line) for line in started.folder.metrics_jsonl.read_text().splitlines()]
    assert written == returned
    assert [values["step"] for values in written] == [1, 2, 3]
    names = sorted(path.name for path in started.folder.rollouts.iterdir())
    assert names == ["step_000001.jsonl", "step_000002.jsonl", "step_000003.jsonl"]
    assert (started.run.step, started.run.version) == (3, 3)
    assert list(started.folder.tensorboard.iterdir())


def test_a_metric_that_the_run_computes_itself_is_refused(start, clock, make_group):
    run = start().run
    with pytest.raises(ValueError, match=r"'time/step_s' is computed by Run.log"):
        run.log([Last("time/step_s", 1.0)], RolloutRecords([make_group([1.0, 0.0])]))


class Pairs:
    """Records of another kind of training: a chosen and a rejected answer."""

    tokens = 20

    def lines(self, step):
        yield b'{"step": %d, "chosen": "yes", "rejected": "no"}\n' % step

    def samples(self, count, answers):
        return "1 of 1 pairs", [Sample("Is it?", "yes", None, None, {})]


def test_a_step_of_any_kind_of_training_is_logged_by_its_metrics_and_records(start, clock):
    started = start(show_every=1)
    with started.run.phase("train"):
        clock.pass_s(4)
    values = started.run.log([Mean("pairs/accuracy", 3, 4)], Pairs())
    assert (values["pairs/accuracy"], values["throughput/tokens_per_s"]) == (0.75, 5.0)
    (file,) = started.folder.rollouts.iterdir()
    assert json.loads(file.read_text()) == {"step": 1, "chosen": "yes", "rejected": "no"}
    assert "step 1: 1 of 1 pairs" in started.lines


def test_the_time_of_an_evaluation_does_not_count_as_throughput(start, clock):
    started = start()
    with started.run.phase("train"):
        clock.pass_s(4)
    with started.run.phase("evaluate"):
        clock.pass_s(16)
    values = started.run.log([], Pairs())
    assert (values["time/step_s"], values["time/evaluate_s"], values["throughput/tokens_per_s"]) == (20.0, 16.0, 5.0)
    started.run.close()
    summary = "\n".join(started.lines)
    assert "4.0 s a step, 5 tokens/s, without evaluations" in summary
    assert "evaluate 80%, train 20%" in summary


def test_the_trace_has_the_phases_and_the_step_around_them(start, clock, make_group):
    started = start()
    do_step(started.run, clock, make_group([1.0, 0.0]))
    events = [event for event in json.loads(started.folder.trace(first_step=1).read_text()) if event["ph"] == "X"]
    assert [(event["name"], event["ts"], event["dur"]) for event in events] == [
        ("rollout", 0, 6_000_000),
        ("train", 6_000_000, 3_000_000),
        ("sync", 9_000_000, 1_000_000),
        ("step 1", 0, 10_000_000),
    ]


def test_starting_is_told_line_by_line_and_progress_is_not(start, clock):
    started = start()
    with started.run.phase("start"):
        started.run.note("starting Ray")
        started.run.note("loading 1 engine")
    with started.run.phase("rollout"):
        started.run.note("12 of 64 completions")
    assert started.lines == ["starting Ray", "loading 1 engine"]


def test_a_run_that_goes_back_has_the_steps_again_by_which_it_was_to_end_early(start):
    run = start(steps=3).run
    run.steps = 1
    run.rewind(step=0, version=0)
    assert run.steps == 3


def test_samples_are_shown_when_due_and_at_the_end_but_not_twice(start, clock, make_group):
    started = start(show_every=2, steps=3)
    for _ in range(2):
        do_step(started.run, clock, make_group([1.0, 0.0]))
    assert [line for line in started.lines if "first completion" in line] == [
        "step 2: first completion of 1 of 1 prompts"
    ]
    do_step(started.run, clock, make_group([1.0, 0.0]))
    started.run.close()
    assert [line[:6] for line in started.lines if "first completion" in line] == ["step 2", "step 3"]


def test_no_samples_are_shown_if_none_are_asked_for(start, clock, make_group):
    started = start(samples=0, show_every=1)
    do_step(started.run, clock, make_group([1.0, 0.0]))
    started.run.close()
    assert not any("completion" in line for line in started.lines)


def test_a_run_ends_with_a_summary(start, clock, make_group):
    started = start(samples=0)
    for reward in (0.0, 0.0, 1.0):
        do_step(started.run, clock, make_group([reward, reward]))
    started.folder.export.mkdir()
    started.run.close()
    started.run.close()
    assert started.lines[3:] == [
        "Done: 3 of 3 steps in 30 s",
        "  reward      0.000 -> 1.000 (first and last step)",
        "  speed       10.0 s a step, 1 tokens/s",
        "  time        rollout 60%, train 30%, sync 10%, other 0%",
        f"  run folder  {started.folder.root}",
        f"  model       {started.folder.export}",
        f"  try it      vllm serve {started.folder.export}",
        f"  copy it     ray-rl export {started.folder.root} --to my-model",
        f"  curves      tensorboard --logdir {started.folder.tensorboard}",
    ]


def test_a_run_that_failed_says_where_and_shows_no_samples(start, clock, make_group):
    started = start()
    do_step(started.run, clock, make_group([1.0, 0.0]))
    started.run.close(failed=RuntimeError("engine 0 is gone"))
    assert "Failed with RuntimeError in step 2 of 3, after 10 s" in started.lines
    assert not any("first completion" in line for line in started.lines)


def test_the_heartbeat_names_step_phase_time_and_progress(make_config, make_group):
    started = Started(make_config(heartbeat_s=0.02), time.monotonic)
    with started.run.phase("rollout"):
        started.run.note("12 of 64 completions")
        deadline = time.monotonic() + 10
        while not started.lines and time.monotonic() < deadline:
            time.sleep(0.01)  # the loop is blocked
    started.run.close()
    assert started.lines[0] == "step 1: waiting for rollouts (0 s; 12 of 64 completions)"


def test_a_run_in_an_event_loop_times_a_phase_around_an_await(start, clock, make_group):
    async def wait() -> None:
        clock.pass_s(2)

    async def step() -> dict[str, float]:
        with run.phase("rollout"):
            await wait()
        return run.log([], RolloutRecords([make_group([1.0, 0.0])]))

    run = start().run
    assert asyncio.run(step())["time/rollout_s"] == 2.0


@pytest.mark.parametrize("harm", ["full", "gone", "folder"])
def test_a_log_that_cannot_be_written_ends_no_run(start, harm):
    started = start()
    log = started.folder.logs / "driver.log"
    match harm:
        case "full":
            log.symlink_to("/dev/full")
        case "gone":
            started.folder.logs.rmdir()
        case "folder":
            log.mkdir()
    started.run.tell("engine 0 was lost \udce9")
    assert started.lines[-1].startswith("engine 0 was lost")


def test_drawings_that_have_no_room_end_no_run_and_are_told_once(start, clock, make_group, monkeypatch):
    def full(self, *_):
        raise RecordError("cannot write events: No space left on device")

    monkeypatch.setattr("ray_rl.metrics.sinks.TensorBoardSink.write", full)
    monkeypatch.setattr("ray_rl.metrics.trace.TraceWriter.flush", full)
    started = start()
    for _ in range(2):
        do_step(started.run, clock, make_group([1.0, 0.0], lengths=[4, 6]))
    records = [json.loads(line) for line in started.folder.metrics_jsonl.read_text().splitlines()]
    assert [record["step"] for record in records] == [1, 2]
    told = [line for line in started.lines if "No space left on device" in line]
    assert told == ["cannot write events: No space left on device; the run continues without it"]


def test_numbers_that_have_no_room_still_end_the_run(start, clock, make_group, monkeypatch):
    def full(self, *_):
        raise RecordError("cannot write metrics.jsonl: No space left on device")

    monkeypatch.setattr("ray_rl.metrics.sinks.JsonlSink.write", full)
    with pytest.raises(RecordError, match=r"metrics\.jsonl"):
        do_step(start().run, clock, make_group([1.0, 0.0], lengths=[4, 6]))
