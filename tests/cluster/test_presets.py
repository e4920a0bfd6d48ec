"""Every named algorithm trains, through the same driver, on real Ray, vLLM and DeepSpeed."""

import json
from contextlib import AsyncExitStack, closing

import pytest

from ray_rl.config.presets import PRESETS
from tests.tiny_model import write_tiny_model

STEPS = 2
IN_REWARD = {"ppo", "rloo", "reinforce_plus_plus"}
IN_LOSS = {"grpo", "reinforce_plus_plus_baseline"}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def config(connected, make_config, model, tmp_path, request):
    """The demo's task; lengths differ inside every group of a random model, so that there is something to learn."""
    return make_config(
        run={"name": request.param, "dir": str(tmp_path), "steps": STEPS},
        model={"path": str(model), "dtype": "float32"},
        data={"kind": "addition", "maximum": 4, "max_prompt_tokens": 32},
        rewards=[{"kind": "length", "target": 2}],
        algorithm={"preset": request.param, "prompts_per_step": 4},
        critic={"learning_rate": 3e-4} if request.param == "ppo" else None,
        rollout={"max_tokens": 16, "max_sequences": 16, "kv_cache_gib": 0.05},
        train={"learning_rate": 3e-4},
        weight_sync={"bucket_mib": 1, "timeout_s": 60},
        cluster={"accelerator": "cpu", "address": connected.cluster.address},
    )


@pytest.mark.parametrize("config", list(PRESETS), indirect=True)
async def test_a_preset_trains_the_demos_task(config, model):
    from ray_rl.cluster.start import started_workers
    from ray_rl.config.rules import check
    from ray_rl.data.chat import ChatTokenizer
    from ray_rl.data.source import build_source
    from ray_rl.loops.online import train
    from ray_rl.loops.roles import Roles
    from ray_rl.metrics.console import RunConsole
    from ray_rl.metrics.run import Run
    from ray_rl.metrics.run_folder import RunFolder
    from ray_rl.planner.plan import plan
    from ray_rl.rewards.combine import build_rewards
    from ray_rl.rollout.collector import Collector

    check(config)
    folder, layout = RunFolder.create(config), plan(config)
    async with AsyncExitStack() as stack:
        run = stack.enter_context(Run(config, folder, RunConsole()))
        rewards = stack.enter_context(closing(build_rewards(config.rewards)))
        folders = dict.fromkeys(layout.workers, (str(model),))
        workers = await stack.enter_async_context(
            started_workers(config, layout, folders=folders, logs=folder.logs, note=run.note)
        )
        roles = Roles(
            rollouts=Collector(
                config,
                build_source(config.data, seed=0, tokenizer=ChatTokenizer(model)),
                workers.engines,
                rewards,
            ),
            actor=workers.actor,
            weights=workers.weights,
            critic=workers.critic,
            reference=workers.reference,
        )
        await train(config, roles, run, export_to=None)
    records = [json.loads(line) for line in folder.metrics_jsonl.read_text().splitlines()]
    assert [(record["step"], record["version"]) for record in records] == [(1, 1), (2, 2)]
    preset = config.algorithm.preset
    for record in records:
        assert record["policy/grad_norm"] > 0
        assert record["sync/logprob_gap_mean"] < 1e-4
        assert ("policy/kl_before_update" in record) == (preset in IN_REWARD)
        assert ("policy/kl_reference" in record) == (preset in IN_LOSS)
        assert ("policy/kl_coefficient" in record) == (preset in IN_REWARD | IN_LOSS)
        assert ("critic/explained_variance" in record) == (preset == "ppo")
        assert ("rollout/groups_dropped_fraction" in record) == (preset == "dapo")
    # The reference is the policy at the start: what was trained has left it.
    distance = "policy/kl_before_update" if preset in IN_REWARD else "policy/kl_reference"
    if preset in IN_REWARD | IN_LOSS:
        assert abs(records[1][distance]) > 10 * abs(records[0].get(distance, 0.0)) > 0 or records[1][distance] > 1e-4
