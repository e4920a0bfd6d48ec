"""Who comes from TRL, OpenRLHF or verl is told what a key is called here."""

import json
import re

import pytest

from ray_rl.config.loading.foreign_words import FOREIGN, FOREIGN_OFFLINE, FOREIGN_ONLINE, NOTES, our_word
from ray_rl.config.loading.lacking import KINDS, lacks
from ray_rl.config.loading.load import load_config
from ray_rl.config.loading.schema import all_keys
from ray_rl.config.loading.yaml_tree import Located, parse
from ray_rl.config.run import RunConfig
from ray_rl.errors import ConfigError

KEYS = set(all_keys(RunConfig)) | {"rewards", "reward"}
NOTHING = Located({}, "nothing")


def test_there_are_many_words_and_each_leads_to_keys_that_exist():
    assert len(FOREIGN) > 150
    for word, ours in [*FOREIGN.items(), *FOREIGN_ONLINE.items(), *FOREIGN_OFFLINE.items()]:
        sections = set(RunConfig.model_fields)
        text = ours if isinstance(ours, str) else ""
        named = re.findall(r"\b([a-z_]+(?:\.[a-z_0-9]+)+)\b", text)
        keys = [*([] if text else ours), *(key for key in named if key.split(".")[0] in sections)]
        assert set(keys) <= KEYS, word
        assert keys or re.search("remove it|resume|algorithm.loss|data.too_long", text), word
    assert set(NOTES) <= KEYS


@pytest.mark.parametrize(
    ("value", "word"), [("true", "`packing: true` of TRL is nearest to packed"), ("false", "of TRL is padded")]
)
def test_the_packing_of_trl_is_one_problem_that_says_what_it_is_here(load, value, word):
    with pytest.raises(ConfigError) as refusal:
        load(f"train.packing={value}")
    (line,) = str(refusal.value).splitlines()
    assert line.startswith(f"override 'train.packing={value}': must be 'auto', 'padded', 'packed' or 'shared_prefix' (")
    assert word in line


def test_no_word_hides_a_key_of_the_same_name_in_its_own_section(load):
    # Given where it belongs, every key of ours is taken for what it is: the table is asked for unknown keys alone.
    assert load("rollout.temperature=0.5").rollout.temperature == 0.5


@pytest.mark.parametrize(
    ("override", "ours"),
    [
        ("lr=1e-6", "here it is called train.learning_rate"),
        ("train.lr=1e-6", "here it is called train.learning_rate"),
        ("num_generations=8", "here it is called algorithm.group_size"),
        ("beta=0.1", "here it is called algorithm.kl.coefficient"),
        ("algorithm.kl_coef=0.1", "here it is called algorithm.kl.coefficient"),
        ("n_samples_per_prompt=8", "here it is called algorithm.group_size"),
        ("rollout.gpu_memory_utilization=0.5", "here it is called rollout.gpu_memory_fraction"),
        ("rollout.tensor_parallel_size=2", "here it is called rollout.tensor_parallel"),
        ("max_steps=5", "here it is called run.steps"),
        ("lora_rank=5", "here it is called model.adapter.rank"),
        ("actor_rollout_ref.model.lora_alpha=5", "here it is called model.adapter.alpha"),
        ("use_peft=true", "here it is called model.adapter ({kind: lora, rank: 32})"),
        ("max_completion_length=5", "here it is called rollout.max_tokens"),
        ("rollout.max_new_tokens=5", "here it is called rollout.max_tokens"),
        ("actor_rollout_ref.actor.optim.lr=1e-6", "here it is called train.learning_rate"),
        ("actor_rollout_ref.rollout.n=4", "here it is called algorithm.group_size"),
        ("actor_rollout_ref.model.path=a", "here it is called model.path"),
        ("data.train_files=a.parquet", "here it is called data.path"),
        (
            "trainer.total_epochs=3",
            "here it is called run.epochs, but algorithm.kind=grpo does not read it; remove it, and set run.steps",
        ),
        ("num_episodes=3", "the length of a run is run.steps"),
        ("algorithm.beta=0.1", "here it is called algorithm.kl.coefficient"),
        ("precompute_ref_log_probs=true", "here it is called reference.when, but algorithm.kind=grpo does not read"),
        (
            "max_seq_length=512",
            "here it is called data.max_tokens, but algorithm.kind=grpo does not read it; remove it; "
            "data.max_prompt_tokens and rollout.max_tokens are the limits",
        ),
        ("max_length=512", "here it is called data.max_prompt_tokens and rollout.max_tokens"),
        ("train_batch_size=8", "here it is called algorithm.prompts_per_step (prompts, not completions)"),
        ("rpo_alpha=1", "here it is called algorithm.likelihood.coefficient, but algorithm.kind=grpo has no such key"),
        ("assistant_only_loss=true", "here it is called algorithm.train_on, but algorithm.kind=grpo has no such key"),
        ("metric_for_best_model=loss", "here it is called checkpoint.keep_best, but algorithm.kind=grpo does not"),
        ("critic_warmup=3", "here it is called critic.warmup_steps, but algorithm.kind=grpo has no critic; remove it"),
        ("vllm_mode=colocate", "here it is called cluster.colocate"),
        (
            "data.dataset_name=a/b",
            "here it is called data.name, but data.kind=addition has no such key; set data.kind to hub, or remove it",
        ),
        ("trainer.n_gpus_per_node=8", "here it is called cluster.gpus_per_node"),
        ("wandb.project=x", "there is no upload"),
        ("per_device_train_batch_size=8", "micro-batches have a budget of tokens, train.micro_batch_tokens"),
        ("gradient_accumulation_steps=8", "micro-batches have a budget of tokens, train.micro_batch_tokens"),
        ("train.micro_batch_size=8", "micro-batches have a budget of tokens, train.micro_batch_tokens"),
        ("algorithm.epsilon=0.1", "here it is called algorithm.clip (a pair: [0.2, 0.28])"),
    ],
)
def test_an_override_of_another_system_says_what_it_is_called_here(load, override, ours):
    with pytest.raises(ConfigError) as caught:
        load(override)
    assert str(caught.value).startswith(f"override '{override}': unknown key; {ours}")


def test_a_file_of_another_system_gets_a_line_for_each_of_its_keys(write):
    text = """\
run: {name: test, steps: 10}
model: {path: smollm2-135m-instruct}
rewards: [{kind: number}]
algorithm: {kind: grpo}
data:
  train_files: a.parquet
actor_rollout_ref:
  actor:
    ppo_epochs: 2
    nothing_like_it: 1
lr: 1
"""
    with pytest.raises(ConfigError) as caught:
        load_config(write(text))
    lines = str(caught.value).splitlines()
    assert lines[0] == "4 problems in the configuration:"
    assert lines[1].startswith("  run.yaml:5: data.kind: missing in {'train_files': 'a.parquet'}; set it to one of ")
    assert lines[1].endswith("; data.train_files: here it is called data.path")
    assert lines[2:] == [
        "  run.yaml:9: actor_rollout_ref.actor.ppo_epochs: unknown key; here it is called algorithm.update_epochs",
        "  run.yaml:10: actor_rollout_ref.actor.nothing_like_it: unknown key; there is no such key here; remove it",
        "  run.yaml:11: lr: unknown key, its value is 1; here it is called train.learning_rate",
    ]


@pytest.mark.parametrize(
    ("override", "ours"),
    [
        ("temperature=1", "here it is called rollout.temperature, but algorithm.kind=sft samples nothing; remove it"),
        ("top_k=50", "nothing is sampled; remove it"),
        ("num_train_epochs=3", "here it is called run.epochs (of algorithms that learn from examples; rollouts have"),
        ("train_batch_size=8", "here it is called algorithm.batch_size (examples of an optimizer step, over all "),
        ("max_length=512", "here it is called data.max_tokens (prompt and answer of an example)"),
        ("max_prompt_length=512", "here it is called data.max_prompt_tokens, but algorithm.kind=sft does not read it;"),
        ("truncation=left", "data.too_long says what happens to longer examples than data.max_tokens; set it"),
        ("beta=0.1", "here it is called algorithm.kl.coefficient, but algorithm.kind=sft has no such key; remove it"),
        ("ref_model=a", "here it is called reference.path, but algorithm.kind=sft has no reference; remove it"),
        ("engines=2", "it is like rollout.engines, but algorithm.kind=sft samples nothing; remove it"),
        ("rollout.temprature=1", "rollout: algorithm.kind=sft samples nothing; remove it"),
        ("max_prompt_tokens=9", "it is like data.max_prompt_tokens, but algorithm.kind=sft does not read it; remove"),
    ],
)
def test_a_key_is_suggested_only_to_an_algorithm_that_reads_it(write, override, ours):
    config = "run: {name: a}\nmodel: {path: a}\ndata: {kind: jsonl, path: a}\nalgorithm: {kind: sft}\n"
    with pytest.raises(ConfigError) as caught:
        load_config(write(config), [override])
    assert str(caught.value).startswith(f"override '{override}': unknown key; {ours}")


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_key_in_a_message_is_one_that_the_kind_reads_or_is_said_to_lack(kind):
    tree = parse(f"algorithm: {{kind: {kind}}}", "run.yaml")
    for word in FOREIGN:
        said, _, reason = (our_word(word, tree) or "").partition(", but ")
        named = set(re.findall(r"[a-z_0-9]+(?:\.[a-z_0-9]+)+", said.partition(" (")[0])) & KEYS
        lacking = {key for key in named if lacks(key, tree)}
        assert not lacking or (len(named) == 1 and reason), (word, said)


def test_no_key_is_said_to_be_called_like_itself():
    for key in KEYS:
        assert not re.search(rf"called (.* and )?{re.escape(key)}( |$)", our_word(key, NOTHING) or ""), key


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_word_of_another_system_is_never_called_like_itself_in_any_kind(write, kind):
    given = {word: 1 for word in FOREIGN if "." not in word}
    with pytest.raises(ConfigError) as caught:
        load_config(write(f"run: {{name: test, steps: 1}}\nalgorithm: {json.dumps({'kind': kind, **given})}\n"))
    said = re.findall(r"algorithm\.(\w+): unknown key, its value is 1; (.*)", str(caught.value))
    assert len(said) > 150
    for word, advice in said:
        assert f"algorithm.{word}" not in re.findall(r"[\w.]+", advice), advice


def test_a_key_that_some_kinds_have_is_not_renamed_where_the_kind_is_missing(write):
    with pytest.raises(ConfigError) as caught:
        load_config(write("run: {name: test}\nmodel: {path: a}\ndata: {kind: addition}\nalgorithm: {beta: 0.1}\n"))
    assert str(caught.value).startswith("run.yaml:4: algorithm.kind: missing in {'beta': 0.1}; set it to one of ppo, ")
    assert "called" not in str(caught.value)


def test_a_key_of_ours_in_the_wrong_section_is_still_found(load):
    with pytest.raises(ConfigError, match=r"did you mean train.weight_decay\?"):
        load("run.weight_decay=1")
    with pytest.raises(ConfigError, match=r"did you mean train.weight_decay or critic.weight_decay\?"):
        load("run.weight_decay=1", "algorithm.kind=ppo")
    assert our_word("weight_decay", NOTHING) is None
