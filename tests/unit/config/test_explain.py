import pytest

from ray_rl.config.loading.load import load_config
from ray_rl.errors import ConfigError

GOOD = """\
run: {name: test, steps: 10}
model: {path: smollm2-135m-instruct}
data: {kind: addition}
rewards:
  - kind: number
  - {kind: length, target: 5}
algorithm: {kind: grpo}
"""


def problems(path, *overrides):
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    return str(caught.value)


@pytest.mark.parametrize(
    ("more", "nearest"),
    [
        ("train: {lerning_rate: 1}", "train.learning_rate"),
        ("train: {zero-stage: 1}", "train.zero_stage"),
        ("train: {max_tokens: 1}", "rollout.max_tokens"),
        ("rollout: {target: 1}", "rewards.1.target"),
        ("learning_rate: 1", "train.learning_rate"),
        ("lerning_rate: 1", "train.learning_rate"),
    ],
)
def test_an_unknown_key_names_the_nearest_one_of_its_section_or_of_another(write, more, nearest):
    message = problems(write(GOOD + more + "\n"))
    assert message.startswith("run.yaml:8: ")
    assert message.endswith(f": unknown key, its value is 1; did you mean {nearest}?")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("checkpoint: {qqq: 9}", "checkpoint.qqq: unknown key, its value is 9; remove it or use one of every_steps, "),
        (
            "checkpoint: {every_steps: None}",
            "checkpoint.every_steps=None: is text; write null for None (Steps between ",
        ),
        ("train: {workers: two}", "train.workers=two: must be an integer (Number of data-parallel workers.)"),
        ("model: {path: m, trust_remote_code: perhaps}", "model.trust_remote_code=perhaps: must be true or false"),
        ("train: 3", "train=3: must be a mapping of options"),
        ("train: {betas: [0.9, []]}", "train.betas.1=[]: must be a number (The two decay rates of AdamW.)"),
        ("train: {eps: .inf}", "train.eps=inf: must be a finite number (The epsilon of AdamW.)"),
        (
            "model: {dtype: fp16, path: a}",
            "model.dtype=fp16: must be 'auto', 'bfloat16' or 'float32' (Type of the weights in forward passes ",
        ),
        (
            "cluster: {colocate: [[x]]}",
            "cluster.colocate.0.0=x: must be 'actor', 'critic', 'reference', 'reward' or 'rollout' (",
        ),
        (
            "algorithm: {kind: dappo}",
            "algorithm.kind=dappo: unknown kind; did you mean dapo? The kinds are ppo, ",
        ),
        ("algorithm: {kind: gpro}", "algorithm.kind=gpro: unknown kind; did you mean grpo? The kinds are ppo, "),
        ("algorithm: {kind: rm}", "algorithm.kind=rm: unknown kind; did you mean reward_model? The kinds are ppo, "),
        ("algorithm: {kind: [ppo]}", "algorithm.kind=\"['ppo']\": unknown kind; did you mean ppo? "),
        (
            "algorithm: {clip: [0.1, 0.1]}",
            "algorithm.kind: missing in {'clip': [0.1, 0.1]}; set it to one of ppo, ",
        ),
        ("algorithm: {kind: dapo, shaping: 3}", "algorithm.shaping=3: must be a mapping of options"),
        (
            "algorithm: {kind: ppo, group_size: 0}",
            "algorithm.group_size=0: must be at least 1 (Number of completions per prompt (G)",
        ),
    ],
)
def test_a_wrong_value_says_place_key_value_requirement_and_meaning(write, more, message):
    section = more.partition(":")[0]
    good = GOOD.replace(f"{section}:", f"# {section}:")
    assert problems(write(good + more + "\n")).startswith(f"run.yaml:8: {message}")


@pytest.mark.parametrize(
    ("written", "right"),
    [
        ("my_rewards.brevity", "my_rewards:brevity"),
        ("pkg.rewards.brevity", "pkg.rewards:brevity"),
        ("my_rewards.py", "my_rewards:my_function"),
        ("pkg/my_rewards.py:brevity", "pkg.my_rewards:brevity"),
        ("./my_rewards.py:brevity", "my_rewards:brevity"),
        ("brevity", "my_rewards:my_function"),
    ],
)
def test_an_import_path_in_another_form_is_shown_as_it_is_written_here(write, written, right):
    said = problems(write(GOOD), f"rewards=[{{kind: custom, function: {written}}}]")
    assert said.endswith(
        f"rewards.0.function={written}: must be the path of a module, a colon, and the name of a function: {right} "
        "(Import path: `package.module:function`.)"
    )


def test_an_unknown_kind_lists_the_valid_ones(write):
    assert problems(write(GOOD.replace("addition", "adition"))) == (
        "run.yaml:3: data.kind=adition: unknown kind; did you mean addition? "
        "The kinds are addition, reasoning_gym, episodes, jsonl, parquet, csv, hub, custom, mixture"
    )
    assert problems(write(GOOD), "rewards.0.kind=qqqq") == (
        "override 'rewards.0.kind=qqqq': unknown kind; "
        "set it to one of number, math_verify, choice, regex, length, reasoning_gym, custom, tool_format, "
        "valid_calls, right_call, recovery, model"
    )


def test_a_missing_kind_lists_the_valid_ones(write):
    assert problems(write(GOOD.replace("{kind: length, target: 5}", "{target: 5}"))) == (
        "run.yaml:6: rewards.1.kind: missing in {'target': 5}; "
        "set it to one of number, math_verify, choice, regex, length, reasoning_gym, custom, tool_format, "
        "valid_calls, right_call, recovery, model"
    )


def test_a_key_of_another_kind_names_that_kind(write):
    assert problems(write(GOOD.replace("{kind: addition}", "{kind: addition, path: a.jsonl}"))) == (
        "run.yaml:3: data.path: unknown key, its value is a.jsonl; "
        "it belongs to kind jsonl and parquet and csv; set data.kind or remove it"
    )


def test_a_key_is_suggested_among_those_of_the_chosen_kind(write):
    assert problems(write(GOOD.replace("{kind: addition}", "{kind: addition, maximun: 3}"))) == (
        "run.yaml:3: data.maximun: unknown key, its value is 3; did you mean data.maximum?"
    )


def test_a_missing_value_says_what_it_means(write):
    assert problems(write(GOOD.replace("{path: smollm2-135m-instruct}", "{dtype: float32}"))) == (
        "run.yaml:2: model.path: missing, and there is no default; add it (A folder, a name on the Hugging Face hub, "
        "or a packaged model (`smollm2-135m-instruct`).)"
    )


def test_a_missing_section_points_at_the_file(write):
    assert problems(write(GOOD.replace("model:", "train: {} #"))) == (
        "run.yaml:1: model: missing, and there is no default; add it"
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "algorithm.loss.kind=clippd",
            "unknown kind; did you mean clipped? The kinds are clipped, gspo, cispo, sapo, policy_gradient, custom",
        ),
        (
            "algorithm.kl.control={target: 1}",
            "algorithm.kl.control.target: unknown key, its value is 1; it belongs to kind adaptive; set "
            "algorithm.kl.control.kind or remove it",
        ),
        (
            "rewards=[{kind: model, paths: [a], combine: {kind: mean, k: 1}}]",
            "rewards.0.combine.k: unknown key, its value is 1; it belongs to kind mean_minus_std; set "
            "rewards.0.combine.kind or remove it",
        ),
    ],
)
def test_the_parts_of_an_algorithm_are_explained_like_any_section(write, override, message):
    assert problems(write(GOOD), override).endswith(message)


def test_all_problems_come_in_one_message(write):
    path = write(GOOD + "train: {workers: 0, lerning_rate: 1}\n")
    assert problems(path, "run.steps=1.5").splitlines() == [
        "3 problems in the configuration:",
        "  override 'run.steps=1.5': must be an integer "
        "(Number of training steps; each trains on one batch of rollouts, or of examples. None: `epochs` is the "
        "length.)",
        "  run.yaml:8: train.workers=0: must be at least 1 (Number of data-parallel workers.)",
        "  run.yaml:8: train.lerning_rate: unknown key, its value is 1; did you mean train.learning_rate?",
    ]


def test_a_long_value_is_cut(write):
    message = problems(write(GOOD), "train.workers=" + "x y" * 100)
    assert "train.workers=x yx y" in message and message.count("x y") < 30
