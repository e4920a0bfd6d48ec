"""Every named algorithm trains, through the same driver, on real Ray, vLLM and DeepSpeed."""

import pytest

from ray_rl.config.loading.schema import sections_of
from ray_rl.config.online import OnlineKinds
from tests.system.cluster.whole_run import whole_run
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
        algorithm={"kind": request.param, "prompts_per_step": 8},
        critic={"learning_rate": 3e-4} if request.param == "ppo" else None,
        rollout={"max_tokens": 16, "max_sequences": 16, "kv_cache_gib": 0.05},
        train={"learning_rate": 1e-4},  # with more, four epochs of PPO clip every token in the end
        weight_sync={"bucket_mib": 1, "timeout_s": 60},
        cluster={"accelerator": "cpu", "address": connected.cluster.address},
    )


KINDS = [
    # GRPO and PPO train in tests of whole runs too: tests/system/e2e.
    pytest.param(kind, marks=[] if kind == "dapo" else pytest.mark.long)
    for kind in sections_of(OnlineKinds)
]


@pytest.mark.parametrize("config", KINDS, indirect=True)
async def test_a_kind_trains_the_demos_task(config, model):
    records, _ = await whole_run(config, model)
    assert [(record["step"], record["version"]) for record in records] == [(1, 1), (2, 2)]
    kind = config.algorithm.kind
    for record in records:
        assert record["policy/grad_norm"] > 0
        assert record["sync/logprob_gap_mean"] < 1e-4
        assert ("policy/kl_before_update" in record) == (kind in IN_REWARD)
        assert ("policy/kl_reference" in record) == (kind in IN_LOSS)
        assert ("policy/kl_coefficient" in record) == (kind in IN_REWARD | IN_LOSS)
        assert ("critic/explained_variance" in record) == (kind == "ppo")
        assert ("rollout/groups_dropped_fraction" in record) == (kind == "dapo")
    # The reference is the policy at the start: what was trained has left it.
    distance = "policy/kl_before_update" if kind in IN_REWARD else "policy/kl_reference"
    if kind in IN_REWARD | IN_LOSS:
        assert abs(records[1][distance]) > abs(records[0][distance])
