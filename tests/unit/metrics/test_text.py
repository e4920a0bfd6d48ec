import pytest

from ray_rl.app.records import columns_of
from ray_rl.config import RunConfig
from ray_rl.errors import Preempted
from ray_rl.metrics.summary import Summary
from ray_rl.metrics.text import Status, duration, printable, step_fields

VALUES = {
    "step": 3,
    "version": 3,
    "reward/mean": 0.5,
    "rollout/length_mean": 9.84,
    "rollout/staleness_max": 0,
    "rollout/tokens": 812,
    "time/step_s": 13.94,
    "time/rollout_s": 6.1,
    "time/train_s": 7.0,
    "throughput/tokens_per_s": 1812.4,
}


def test_a_step_is_told_in_labels_and_values_and_a_dash_where_there_is_none(make_config):
    assert step_fields(VALUES, columns_of(make_config()), steps=40) == [
        ("step", " 3/40"),
        ("reward", " 0.500"),
        ("length", "   9.8"),
        ("cut off", "   -"),
        ("entropy", "    -"),
        ("gradient", "     -"),
        ("tokens/s", " 1,812"),
        ("seconds", " 13.9"),
        ("rollout", "  6.1"),
        ("train", "  7.0"),
        ("sync", "    -"),
        ("checkpoint", "    -"),
    ]


def test_every_step_has_the_same_columns_at_the_same_places(make_config):
    columns = columns_of(make_config())
    bare = {"step": 4, "throughput/tokens_per_s": 3.0, "time/step_s": 0.1}
    full = VALUES | {
        "policy/entropy": 0.4,
        "policy/grad_norm": 12.5,
        "time/checkpoint_s": 3.1,
        "policy/kl_reference": 1,
    }
    lines = [
        "  ".join(f"{label} {value}" for label, value in step_fields(values, columns, steps=40))
        for values in (VALUES, bare, full)
    ]
    assert len({len(line) for line in lines}) == 1
    assert len({tuple(i for i, char in enumerate(line) if char.isalpha()) for line in lines}) == 1


def test_staleness_distance_and_baselines_have_columns_in_the_runs_that_have_them(make_config):
    plain = columns_of(make_config())
    assert not {"stale", "kl"} & plain.fields.keys()
    assert plain.phases == ("rollout", "train", "sync", "checkpoint")
    changed = {"algorithm": {"kind": "grpo"}, "rollout": {"max_staleness": 1}}
    changed |= {"checkpoint": {"every_steps": None}}
    config = RunConfig.model_validate(make_config().model_dump() | changed)
    full = columns_of(config)
    assert {"stale", "kl"} <= full.fields.keys()
    assert full.phases == ("rollout", "reference", "train", "sync")
    assert ("stale", "2") in step_fields(VALUES | {"rollout/staleness_max": 2}, full, steps=40)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (45, "45 s"),
        (59.6, "1 min 00 s"),
        (552, "9 min 12 s"),
        (7500, "2 h 05 min"),
        (3599.9, "1 h 00 min"),
    ],
)
def test_durations_read_well(seconds, text):
    assert duration(seconds) == text


def test_a_status_says_the_step_what_how_long_and_how_far():
    assert str(Status(3, "waiting for rollouts", 45.2, "12 of 64 completions")) == (
        "step 3: waiting for rollouts (45 s; 12 of 64 completions)"
    )
    assert str(Status(None, "starting", 5)) == "starting (5 s)"


def test_control_characters_of_a_completion_never_reach_the_terminal():
    assert printable("a\n\x1b[2Jb\ud800", encoding="utf-8", limit=100) == r"a\n\x1b[2Jb\ud800"


def test_characters_that_the_stream_cannot_encode_are_escaped():
    assert printable("caf\u00e9", encoding="ascii", limit=100) == r"caf\xe9"
    assert printable("caf\u00e9", encoding="utf-8", limit=100) == "caf\u00e9"


def test_a_long_text_loses_its_middle_and_keeps_its_end():
    assert printable("a" * 50 + "b" * 50, encoding="utf-8", limit=6) == "aaa ... bbb"


def summary_of(rewards, *, planned=40):
    summary = Summary(planned=planned, compared={"reward": "reward/mean"})
    for reward in rewards:
        summary.add(VALUES | {"reward/mean": reward}, tokens=int(VALUES["rollout/tokens"]))
    return summary


def rows_of(summary):
    return dict(summary.rows(folder="runs/adds"))


def test_a_summary_compares_the_first_five_steps_with_the_last_five():
    rows = rows_of(summary_of([0.1] * 5 + [0.3] * 10 + [0.7] * 5))
    assert rows["reward"] == "0.100 -> 0.700 (mean of the first 5 and the last 5 steps)"


@pytest.mark.parametrize(
    ("rewards", "text"),
    [
        ([0.25], "0.250"),
        ([0.1, 0.2], "0.100 -> 0.200 (first and last step)"),
        ([0.1, 0.2, 0.9, 0.4, 0.6], "0.100 -> 0.600 (first and last step)"),
        ([0.1, 0.3, 0.9, 0.9, 0.9, 0.9, 0.4, 0.6], "0.200 -> 0.500 (mean of the first 2 and the last 2 steps)"),
    ],
)
def test_the_two_ends_of_a_short_run_leave_out_its_middle(rewards, text):
    assert rows_of(summary_of(rewards))["reward"] == text


def test_a_summary_of_a_resumed_run_says_since_which_step_it_compares():
    resumed = summary_of([0.1] * 5 + [0.3] * 10 + [0.7] * 5)
    resumed.resumed_at = 153
    assert rows_of(resumed)["reward"] == "0.100 -> 0.700 (mean of the first 5 and the last 5 steps, since step 154)"


def test_a_summary_says_where_the_time_went():
    rows = rows_of(summary_of([0.1] * 4))
    assert rows["time"] == "train 50%, rollout 44%, other 6%"
    assert rows["speed"] == "13.9 s a step, 58 tokens/s"
    assert rows["run folder"] == "runs/adds"


def test_a_summary_of_nothing_has_only_the_folder():
    assert list(rows_of(Summary(planned=3))) == ["run folder"]


def test_the_title_says_how_it_ended():
    assert summary_of([0.1] * 40).title(total_s=552, failed=None) == "Done: 40 of 40 steps in 9 min 12 s"
    failed = summary_of([0.1] * 12).title(total_s=170, failed=RuntimeError("lost"))
    assert failed == "Failed with RuntimeError in step 13 of 40, after 2 min 50 s"
    exporting = summary_of([0.1] * 40).title(total_s=552, failed=OSError("full"))
    assert exporting == "Failed with OSError after the last step, after 9 min 12 s"
    interrupted = summary_of([0.1] * 12).title(total_s=170, failed=KeyboardInterrupt())
    assert interrupted == "Interrupted in step 13 of 40, after 2 min 50 s"
    stopped = Preempted("stopped by SIGTERM after step 12 of 40, saved; resume with: ray-rl resume runs/adds")
    assert summary_of([0.1] * 12).title(total_s=170, failed=stopped) == (
        "Stopped by SIGTERM after step 12 of 40, saved, in 2 min 50 s"
    )
