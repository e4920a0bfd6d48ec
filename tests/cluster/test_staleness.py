"""Sampling ahead of training on real Ray, vLLM and DeepSpeed: every token knows its version."""

import pytest

from tests.cluster.whole_run import whole_run
from tests.tiny_model import write_tiny_model

STEPS = 5


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def config(connected, make_config, model, tmp_path, request):
    """Weights that stay as they are: whatever sampled a token, the trainer must find the same probability for it."""
    return make_config(
        run={"name": "ahead", "dir": str(tmp_path), "steps": STEPS},
        model={"path": str(model), "dtype": "float32"},
        data={"kind": "addition", "maximum": 4, "max_prompt_tokens": 32},
        rewards=[{"kind": "length", "target": 2}],
        algorithm={"prompts_per_step": 4, "group_size": 4, "correction": {"kind": "truncate_tokens"}},
        rollout={"max_tokens": 64, "max_sequences": 16, "kv_cache_gib": 0.05, **request.param},
        train={"learning_rate": 1e-12},
        weight_sync={"bucket_mib": 1, "timeout_s": 60},
        cluster={"accelerator": "cpu", "address": connected.cluster.address},
    )


@pytest.mark.parametrize(
    "config",
    [
        {"max_staleness": 1},
        {"max_staleness": 2, "order": "completion"},
        {"max_staleness": 1, "on_publish": "finish"},
    ],
    indirect=True,
    ids=["keep", "completion", "finish"],
)
async def test_tokens_sampled_ahead_have_their_version_and_the_trainers_probability(config, model):
    records, samples = await whole_run(config, model)
    assert len(records) == STEPS
    ages = [record["rollout/staleness_max"] for record in records]
    assert ages[0] == 0
    assert 1 <= max(ages) <= config.rollout.max_staleness
    assert max(record["rollout/groups_ahead"] for record in records) > 0
    # float32 against float32; a request that outlived a publish had its keys computed anew.
    assert max(record["sync/logprob_gap_max"] for record in records) < 1e-3
    assert [record["policy/correction_mean"] for record in records] == pytest.approx([1.0] * STEPS, abs=1e-3)
    assert [record["sync/effective_fraction"] for record in records] == pytest.approx([1.0] * STEPS, abs=1e-4)
    for sample in samples:
        versions = [version for version, _ in sample["versions"]]
        assert versions == sorted(versions)
        assert 0 <= sample["step"] - 1 - versions[0] <= config.rollout.max_staleness
    crossed = [sample for sample in samples if len(sample["versions"]) > 1]
    if config.rollout.on_publish == "finish":
        assert not crossed
    else:
        assert crossed
