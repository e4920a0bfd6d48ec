"""The description of a run's workers, from its configuration."""

import os

import pytest

from ray_rl.app.workers import engines_of, teams_of
from ray_rl.config import RunConfig
from ray_rl.planner.plan import plan

FOLDERS = {"actor": ("p",), "critic": ("p",), "reference": ("r",), "reward": ("j", "k"), "rollout": ("p",)}


def config_of(**cluster):
    return RunConfig.model_validate(
        {
            "run": {"name": "adds", "steps": 1},
            "model": {"path": "p", "dtype": "float32"},
            "data": {"kind": "addition", "max_prompt_tokens": 100},
            "rewards": [{"kind": "model", "paths": ["j", "k"], "workers": 2, "timeout_s": 70}],
            "algorithm": {"kind": "ppo", "kl": {"coefficient": 0.1}},
            "train": {"workers": 2, "timeout_s": 50},
            "critic": {"workers": 1, "timeout_s": 60},
            "reference": {"workers": 1},
            "rollout": {"engines": 3, "max_tokens": 28},
            "cluster": {"accelerator": "cpu", **cluster},
        }
    )


def described(config):
    layout = plan(config)
    return teams_of(config, layout, FOLDERS), engines_of(config, layout, FOLDERS)


def test_each_role_but_the_engines_is_a_team_and_those_under_training_have_a_state():
    teams, engines = described(config_of())
    assert {team.role: team.has_state for team in teams} == {
        "actor": True,
        "critic": True,
        "reference": False,
        "reward": False,
    }
    assert {team.role: team.timeout_s for team in teams if team.role != "reference"} == {
        "actor": 50,
        "critic": 60,
        "reward": 70,
    }
    assert (engines.settings.model, engines.settings.context_tokens) == ("p", 128)
    assert engines.transfer.transport == engines.settings.transfer_backend.removeprefix("ray_rl_") == "shared_memory"


@pytest.mark.parametrize(
    ("cores", "expected"),
    [
        # Actor and critic compute together (3 workers), critic and reference too (2), engines with reward models (5).
        (30, {"actor": 10, "critic": 10, "reference": 15, "reward": 6, "rollout": 10}),
        (2, dict.fromkeys(FOLDERS, 1)),
    ],
)
def test_workers_that_compute_at_the_same_time_share_the_cores(monkeypatch, cores, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(cores))
    teams, engines = described(config_of())
    found = {team.role: team.threads for team in teams} | {"rollout": engines.settings.threads}
    assert found == expected
    # What a worker computes with is what its process is started with.
    assert [team.build.keywords["threads"] for team in teams] == [team.threads for team in teams]


def test_the_configured_number_of_threads_is_that_of_every_worker():
    teams, engines = described(config_of(threads=7))
    assert {team.threads for team in teams} == {engines.settings.threads} == {7}


def test_an_engine_has_room_for_a_whole_episode():
    world = {"kind": "custom", "function": "worlds:World", "max_tokens": 400}
    for environment, tokens in (({"kind": "single_turn"}, 128), (world, 500)):
        config = RunConfig.model_validate(config_of().model_dump() | {"environment": environment})
        assert described(config)[1].settings.context_tokens == tokens
