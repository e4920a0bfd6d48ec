"""The driver over scripted roles."""

import json
import time

import numpy as np
import pytest

from ray_rl.errors import CheckpointError, ClusterError, RewardError, TrainingError, WeightSyncError

TWO_STEPS = [
    "publish 0",
    "take for step 0",
    "update 1",
    "publish 1",
    "take for step 1",
    "update 2",
    "publish 2",
    "export step 2 to export",
]


async def test_the_first_weights_are_published_before_the_first_rollout_and_each_update_before_the_next(loop):
    two = loop()
    await two.train()
    assert two.script.journal == TWO_STEPS
    assert two.script.versions_sampled == [0, 1]


async def test_models_compute_only_in_their_phase_which_a_publish_ends(loop):
    two = loop(reference=True, kl={"coefficient": 0.1})
    two.script.shares_gpus = True
    await two.train()
    assert two.script.journal == [
        "train",
        "publish 0",
        "take for step 0",
        "train",
        "reference log-probabilities",
        "update 1",
        "publish 1",
        "take for step 1",
        "train",
        "reference log-probabilities",
        "update 2",
        "publish 2",
        "train",
        "export step 2 to export",
    ]


async def test_every_step_has_one_version_and_ends_in_the_record(loop):
    three = loop(steps=3)
    await three.train()
    lines = [json.loads(line) for line in three.folder.metrics_jsonl.read_text().splitlines()]
    assert [(line["step"], line["version"]) for line in lines] == [(1, 1), (2, 2), (3, 3)]
    assert {line["rollout/staleness_max"] for line in lines} == {0}
    for key in ("policy/grad_norm", "sync/gb_per_s", "data/epoch", "time/rollout_s", "time/train_s", "time/sync_s"):
        assert key in lines[0]
    assert "time/reference_s" not in lines[0]


async def test_the_update_gets_the_rollouts_as_arrays_with_their_advantages(loop):
    one = loop(steps=1)
    await one.train()
    (batch,) = one.script.batches
    assert batch.group_size == 2
    assert batch.lengths_R.tolist() == [2, 3, 2, 3]
    assert batch.tokens_RT.tolist() == [[0, 0, 0], [1, 1, 1], [10, 10, 0], [11, 11, 11]]
    expected = [[1, 1, 0], [-1, -1, -1], [1, 1, 0], [-1, -1, -1]]
    np.testing.assert_allclose(batch.advantages_RT, expected, rtol=1e-5)


async def test_the_record_of_samples_has_one_advantage_a_rollout(loop):
    one = loop(steps=1)
    await one.train()
    (file,) = one.folder.rollouts.iterdir()
    advantages = [json.loads(line)["advantage"] for line in file.read_text().splitlines()]
    assert advantages == pytest.approx([1, -1, 1, -1], rel=1e-5)


async def test_one_optimizer_step_without_a_penalty_asks_for_no_log_probabilities(loop):
    one = loop(steps=1)
    await one.train()
    (batch,) = one.script.batches
    assert batch.old_logprobs_RT is None
    assert batch.reference_logprobs_RT is None


@pytest.mark.parametrize("more", [{"update_epochs": 2}, {"minibatches": 2}])
async def test_several_optimizer_steps_compare_with_the_policy_before_the_first(loop, more):
    one = loop(steps=1, **more)
    await one.train()
    assert one.script.journal[2:4] == ["actor log-probabilities", "update 1"]
    (batch,) = one.script.batches
    assert np.unique(batch.old_logprobs_RT[batch.loss_mask_RT]).tolist() == [-1.0]


async def test_a_penalty_compares_with_the_reference(loop):
    one = loop(steps=1, reference=True, kl={"coefficient": 0.1})
    await one.train()
    assert one.script.journal[2:4] == ["reference log-probabilities", "update 1"]
    (batch,) = one.script.batches
    assert np.unique(batch.reference_logprobs_RT[batch.loss_mask_RT]).tolist() == [-2.0]
    assert batch.old_logprobs_RT is None


async def test_actor_and_reference_score_the_batch_before_the_update_each_into_its_own_place(loop):
    one = loop(steps=1, reference=True, kl={"coefficient": 0.1}, update_epochs=2)
    await one.train()
    assert sorted(one.script.journal[2:4]) == ["actor log-probabilities", "reference log-probabilities"]
    assert one.script.journal[4] == "update 1"
    (batch,) = one.script.batches
    assert np.unique(batch.old_logprobs_RT[batch.loss_mask_RT]).tolist() == [-1.0]
    assert np.unique(batch.reference_logprobs_RT[batch.loss_mask_RT]).tolist() == [-2.0]


async def test_a_run_without_export_writes_none(loop):
    one = loop(steps=1, export=False)
    await one.train()
    assert one.script.journal[-1] == "publish 1"


@pytest.mark.parametrize(
    ("call", "error"),
    [
        ("publish 0", WeightSyncError("rollout-0 reports 7")),
        ("take for step 1", RewardError("the function raised")),
        ("actor log-probabilities", ClusterError("actor-1 died")),
        ("reference log-probabilities", ClusterError("reference-0 died")),
        ("update 2", TrainingError("the loss is nan")),
        ("publish 2", WeightSyncError("rollout-1 died")),
    ],
)
async def test_a_failure_of_a_role_ends_the_run_as_it_is_and_nothing_is_asked_after_it(loop, call, error):
    two = loop(reference=True, kl={"coefficient": 0.1}, update_epochs=2)
    two.script.errors[call] = error
    with pytest.raises(type(error)) as raised:
        await two.train()
    assert raised.value is error
    after = two.script.journal[two.script.journal.index(call) + 1 :]
    assert not [asked for asked in after if "log-probabilities" not in asked]


async def test_a_step_whose_publish_failed_is_not_recorded(loop):
    two = loop()
    two.script.errors["publish 2"] = WeightSyncError("rollout-1 died")
    with pytest.raises(WeightSyncError):
        await two.train()
    two.run.close()
    assert len(two.folder.metrics_jsonl.read_text().splitlines()) == 1


PPO = {"kind": "ppo", "advantage": {"kind": "gae", "lam": 1.0, "whiten": None}, "update_epochs": 1}
NO_KL = {"coefficient": 0.0, "place": "loss"}


async def test_values_reference_and_old_log_probabilities_are_asked_for_at_the_same_time(loop):
    one = loop(steps=1, reference=True, critic={}, **PPO, kl=KL_IN_REWARD)
    await one.train()
    asked = {"actor log-probabilities", "reference log-probabilities", "values"}
    assert set(one.script.journal[2:5]) == asked
    assert set(one.script.journal[5:7]) == {"critic update", "update 1"}


KL_IN_REWARD = {"coefficient": 0.1, "place": "reward", "estimator": "k1"}


async def test_the_critic_learns_returns_and_the_actor_what_is_more_than_its_values(loop):
    one = loop(steps=1, critic={}, **PPO, kl=NO_KL)
    await one.train()
    (batch,) = one.script.critic_batches
    # Rewards 1 and 0 at the end, undiscounted: every token's return is the reward, its advantage that minus 1/4.
    assert batch.returns_RT.tolist() == [[1, 1, 0], [0, 0, 0], [1, 1, 0], [0, 0, 0]]
    assert one.script.batches[0].advantages_RT.tolist() == [
        [0.75, 0.75, 0],
        [-0.25] * 3,
        [0.75, 0.75, 0],
        [-0.25] * 3,
    ]
    (line,) = [json.loads(line) for line in one.folder.metrics_jsonl.read_text().splitlines()]
    assert line["critic/value_mean"] == 0.25
    assert line["critic/return_mean"] == 0.4
    assert line["critic/explained_variance"] == pytest.approx(0.0)
    assert line["critic/grad_norm"] == 0.25


async def test_the_kl_in_the_reward_is_taken_from_every_token(loop):
    one = loop(steps=1, reference=True, critic={}, **PPO, kl=KL_IN_REWARD)
    await one.train()
    # k1 = -1 - (-2) = 1 nat a token at 0.1: of three tokens' returns the last has lost 0.1, the first 0.3.
    np.testing.assert_allclose(one.script.critic_batches[0].returns_RT[1], [-0.3, -0.2, -0.1], rtol=1e-6)
    assert one.script.batches[0].kl_coefficient == 0.0


async def test_in_its_warm_up_the_critic_is_trained_alone(loop):
    two = loop(steps=2, critic={"warmup_steps": 1}, **PPO, kl=NO_KL)
    await two.train()
    assert [call for call in two.script.journal if "update" in call] == ["critic update", "critic update", "update 1"]


async def test_an_adaptive_coefficient_moves_with_the_divergence_and_reaches_the_loss(loop):
    control = {"kind": "adaptive", "target": 0.5, "horizon": 8.0}
    two = loop(steps=2, reference=True, kl={"coefficient": 0.1, "estimator": "k1", "control": control})
    await two.train()
    # The divergence is 1 nat, twice the target: error clipped to 0.2, times 4 sequences of 8: 10 % more.
    assert [batch.kl_coefficient for batch in two.script.batches] == pytest.approx([0.1, 0.11])


async def test_what_was_cut_off_can_be_left_out_of_the_loss(loop):
    one = loop(steps=1, mask_truncated=True)
    one.script.finish_reason = "length"
    await one.train()
    assert not one.script.batches[0].loss_mask_RT.any()


async def test_the_ratio_may_compare_with_what_the_engine_reported(loop):
    one = loop(steps=1, old_policy="rollout", update_epochs=2)
    await one.train()
    assert not [call for call in one.script.journal if "log-probabilities" in call]
    (batch,) = one.script.batches
    assert batch.old_logprobs_RT is batch.rollout_logprobs_RT


async def test_an_export_that_fails_leaves_a_checkpoint_of_the_last_step_and_says_how_to_repeat_it(loop):
    two = loop()
    two.script.errors["export step 2 to export"] = ClusterError("disk full")
    with pytest.raises(ClusterError) as raised:
        await two.train()
    assert two.store.steps() == [2]
    root = two.folder.root
    assert str(raised.value).startswith(
        "disk full\nThe model could not be exported, but nothing is lost: step 2 is saved"
    )
    assert f"`ray-rl export {root}`" in str(raised.value)
    assert f"`ray-rl resume {root}`" in str(raised.value)


async def test_an_export_that_fails_behind_the_last_checkpoint_saves_nothing_again(loop):
    two = loop(every_steps=1)
    two.script.errors["export step 2 to export"] = ClusterError("disk full")
    with pytest.raises(ClusterError, match="nothing is lost: step 2 is saved"):
        await two.train()
    assert two.script.journal.count("save actor") == 2


async def test_where_neither_export_nor_checkpoint_can_be_written_both_reasons_are_said(loop):
    two = loop()
    two.script.errors |= {
        "export step 2 to export": ClusterError("disk full"),
        "save actor": CheckpointError("disk is full, too"),
    }
    with pytest.raises(ClusterError, match=r"disk full\nNor could a checkpoint of step 2 be saved: disk is full, too"):
        await two.train()


async def test_the_samples_of_a_step_are_written_while_the_models_train(loop):
    two = loop()
    file = two.folder.rollouts / "step_000001.jsonl.partial"
    sizes = []

    def wait() -> None:
        until_s = time.monotonic() + 30
        while not sizes and time.monotonic() < until_s:
            sizes.extend(size for path in [file] if path.exists() and (size := path.stat().st_size))
            time.sleep(0.001)

    two.script.meanwhile["update 1"] = wait
    await two.train()
    assert sizes == [(two.folder.rollouts / "step_000001.jsonl").stat().st_size]


async def test_the_samples_of_a_step_whose_update_fails_are_left_as_no_file(loop):
    two = loop()
    two.script.errors["update 2"] = ClusterError("gone")
    with pytest.raises(ClusterError, match="gone"), two.run:
        await two.train()
    assert [path.name for path in two.folder.rollouts.iterdir()] == ["step_000001.jsonl"]
