"""PPO with every role through the command: actor, critic, reference, an ensemble of reward models, and an engine."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny_model import write_tiny_model
from tests.tiny_reward_model import write_tiny_reward_model

ROOT = Path(__file__).parents[3]
CONFIG = ROOT / "configs" / "ppo_addition_smollm2-135m_cpu.yaml"
STEPS = 3
LIMIT_S = 500
ROLES = ("actor", "critic", "reference", "reward", "rollout")


def ray_rl(*arguments: str, place: Path) -> subprocess.CompletedProcess:
    command = [str(Path(sys.executable).with_name("ray-rl")), *arguments]
    return subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=LIMIT_S, check=False)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("ppo")
    write_tiny_model(place / "policy")
    for seed in range(3):
        write_tiny_reward_model(place / f"judge-{seed}", seed=seed)
    return place


def overrides(place: Path) -> list[str]:
    judges = ", ".join(f"./judge-{seed}" for seed in range(3))
    return [
        f"run={{name: ppo, dir: {place / 'runs'}, steps: {STEPS}}}",
        "model={path: ./policy, dtype: float32}",
        "data={kind: addition, maximum: 4, max_prompt_tokens: 32}",
        "rewards=[{kind: length, target: 4}, {kind: model, "
        f"paths: [{judges}], workers: 2, combine: {{kind: mean_minus_std, k: 0.5}}, weight: 0.1}}]",
        "rollout={max_tokens: 16, max_sequences: 64, kv_cache_gib: 0.1}",
        "critic.learning_rate=1e-3",
        "train.learning_rate=1e-4",
    ]


@pytest.fixture(scope="module")
def ended(place):
    # As on GPUs, where the reference scores while engines sample.
    done = ray_rl("train", str(CONFIG), *overrides(place), "rollout.score_as_finished=true", place=place)
    return done, place / "runs" / "ppo"


def test_it_trains_to_the_end(ended):
    done, folder = ended
    assert done.returncode == 0, done.stdout + done.stderr
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [record["version"] for record in records] == [1, 2, 3]
    assert (folder / "export" / "model.safetensors").is_file()


def test_each_role_is_an_actor_of_its_own_with_a_log(ended):
    _, folder = ended
    workers = {path.stem.rpartition("-")[0] for path in (folder / "logs").iterdir()}
    assert workers == set(ROLES)
    assert (folder / "logs" / "reward-1.log").is_file()


def test_every_step_says_what_critic_reference_and_judges_found(ended):
    _, folder = ended
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        for key in ("value_mean", "return_mean", "explained_variance", "loss", "grad_norm", "learning_rate"):
            assert f"critic/{key}" in record
        assert record["policy/kl_coefficient"] == 0.01
        assert record["reward/model_std"] > 0
        assert record["reward/model_truncated_fraction"] == 0
        assert record["reward/mean"] == pytest.approx(
            record["reward/length_mean"] + 0.1 * record["reward/model_mean"], abs=1e-5
        )


def test_every_sample_is_recorded_with_the_judges_score(ended):
    _, folder = ended
    samples = [json.loads(line) for line in (folder / "rollouts" / "step_000001.jsonl").read_text().splitlines()]
    assert len(samples) == 64
    assert all(set(sample["reward_parts"]) == {"length", "model"} for sample in samples)
    assert len({sample["reward_parts"]["model"] for sample in samples}) > 8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["algorithm.kind=grpo"], "algorithm.advantage.kind=gae: it needs the values of a critic"),
        (["reference=null"], "algorithm.kl.coefficient=0.01: the KL penalty in the reward needs a frozen reference"),
        (["rewards.1.paths=[./two-labels]"], "rewards.1.paths.0=./two-labels: the model has 2 labels"),
        (["rollout.tensor_parallel=3"], "rollout.tensor_parallel=3"),
        (
            ["cluster.accelerator=gpu", "cluster.address=auto", "cluster.gpus_per_node=2"],
            "the cluster has 2 GPUs, but ",
        ),
    ],
)
def test_a_wrong_set_up_is_refused_with_its_remedy_and_leaves_nothing(place, changes, message):
    two_labels = place / "two-labels"
    if not two_labels.exists():
        write_tiny_reward_model(two_labels, num_labels=2)
    done = ray_rl("train", str(CONFIG), *overrides(place), "run.name=refused", *changes, place=place)
    assert done.returncode == 2
    assert message in done.stderr
    assert "; set " in done.stderr or "; add " in done.stderr or "; remove " in done.stderr or "; raise " in done.stderr
    assert "Traceback" not in done.stderr
    assert not (place / "runs" / "refused").exists()
