import pytest

from ray_rl.config.rules.determinism import determinism_rules

TASK = "data={kind: reasoning_gym, task: word_ladder}"


@pytest.mark.parametrize(
    ("overrides", "remedy"),
    [
        (["cluster.accelerator=gpu"], "set cluster.accelerator=cpu"),
        (["model.dtype=bfloat16"], "set model.dtype=float32"),
        (["rollout.max_staleness=1"], "set rollout.max_staleness=0"),
        ([TASK], "export PYTHONHASHSEED=0"),
    ],
)
def test_what_makes_runs_differ_is_refused_with_the_remedy(load, monkeypatch, overrides, remedy):
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    (problem,) = determinism_rules(load("run.deterministic=true", *overrides))
    assert problem.startswith("run.deterministic=true: ")
    assert remedy in problem
    assert list(determinism_rules(load(*overrides))) == []


def test_with_a_fixed_hash_seed_every_task_is_allowed(load, monkeypatch):
    monkeypatch.setenv("PYTHONHASHSEED", "0")
    assert list(determinism_rules(load("run.deterministic=true", TASK))) == []
