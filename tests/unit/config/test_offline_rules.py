import re
from typing import get_args

import pytest
import yaml

from ray_rl.config.data import Mixture
from ray_rl.config.loading.load import dump_config, load_config
from ray_rl.config.loading.schema import sections_of
from ray_rl.config.offline import Dpo, Kto, OfflineKinds
from ray_rl.config.online import OnlineKinds
from ray_rl.config.roles import roles_of
from ray_rl.config.rules.check import check
from ray_rl.config.rules.resume import changes
from ray_rl.data.chat import uses_chat
from ray_rl.errors import ConfigError

SMALLEST = """\
run: {name: test, steps: 10}
model: {path: smollm2-135m-instruct}
data: {kind: jsonl, path: examples.jsonl}
algorithm: {kind: dpo}
cluster: {accelerator: cpu}
"""
KINDS = sections_of(OfflineKinds)


@pytest.fixture
def offline(write):
    """Loads the smallest configuration of DPO under overrides."""

    def load_smallest(*overrides, text=SMALLEST):
        write("", "examples.jsonl")
        return load_config(write(text), overrides)

    return load_smallest


@pytest.fixture
def refused(offline):
    """The message with which `check` refuses it."""

    def message(*overrides):
        with pytest.raises(ConfigError) as caught:
            check(offline(*overrides), visible_gpus=0)
        return str(caught.value)

    return message


@pytest.mark.parametrize("name", KINDS)
def test_a_kind_alone_passes_the_rules_and_survives_dumping_and_loading(offline, write, name):
    config = offline(f"algorithm={{kind: {name}}}")
    check(config, visible_gpus=0)
    dumped = load_config(write(dump_config(config), "dumped.yaml"))
    check(dumped, visible_gpus=0)
    assert dumped == config
    assert dumped.offline == KINDS[name]()


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_names_its_source(name):
    assert re.search(r"arXiv:\d{4}\.\d{5}|TRL's", KINDS[name].__doc__ or "")


def test_no_kind_is_both_online_and_offline():
    assert not set(KINDS) & set(sections_of(OnlineKinds))


@pytest.mark.parametrize(
    ("kind", "learning_rate"),
    [("sft", 2e-5), ("dpo", 1e-6), ("reward_model", 9e-6), ("process_reward_model", 1e-5), ("orpo", 8e-6)],
)
def test_the_learning_rate_of_a_kind_holds_unless_another_is_set(offline, kind, learning_rate):
    assert offline(f"algorithm={{kind: {kind}}}").train.learning_rate == learning_rate
    assert offline(f"algorithm={{kind: {kind}}}", "train.workers=2").train.learning_rate == learning_rate
    assert offline(f"algorithm={{kind: {kind}}}", "train.learning_rate=0.5").train.learning_rate == 0.5


@pytest.mark.parametrize(
    ("kind", "learning_rate"), [("sft", 2e-4), ("dpo", 1e-5), ("reward_model", 9e-5), ("process_reward_model", 1e-4)]
)
def test_the_learning_rate_of_adapters_is_ten_times_as_high(offline, kind, learning_rate):
    assert offline(f"algorithm.kind={kind}", "model.adapter={kind: lora}").train.learning_rate == learning_rate


def test_adapters_may_have_dropout_where_no_log_probabilities_are_compared(offline, refused):
    dropout = "model.adapter={dropout: 0.05}"
    check(offline("algorithm.kind=sft", dropout))
    assert "model.adapter.dropout=0.05: algorithm.kind=dpo compares log-probabilities" in refused(dropout)


def test_reward_models_with_adapters_are_exported_whole(refused):
    peft = ("model.adapter={kind: lora}", "checkpoint.export_adapter=peft")
    assert refused("algorithm.kind=reward_model", *peft) == (
        "checkpoint.export_adapter=peft: algorithm.kind=reward_model trains a head too, and judges load whole models; "
        "set checkpoint.export_adapter=merged"
    )


def test_one_epoch_is_the_default_length(offline):
    assert offline("run={name: test}").run.epochs == 1
    assert offline().run.epochs is None
    assert offline("run={name: test, epochs: 3}").run.epochs == 3


def test_examples_of_a_pair_have_two_rows():
    rows = {name: kind().rows_per_example for name, kind in KINDS.items()}
    assert rows == {
        "sft": 1,
        "reward_model": 2,
        "process_reward_model": 1,
        "dpo": 2,
        "ipo": 2,
        "kto": 1,
        "orpo": 2,
        "simpo": 2,
    }
    assert {name for name, kind in KINDS.items() if kind().is_scorer} == {"reward_model", "process_reward_model"}
    assert {name for name, kind in KINDS.items() if kind().needs_reference} == {"dpo", "ipo", "kto"}


def test_dpo_without_reference_has_none(offline):
    config = offline("algorithm.reference_free=true")
    assert not config.offline.needs_reference
    assert "reference" not in yaml.safe_load(dump_config(config))
    assert isinstance(config.offline, Dpo)


def test_the_reference_has_workers_only_during_training(offline):
    assert [role.name for role in roles_of(offline())] == ["actor"]
    live = offline("reference={when: during, path: other/model, workers: 2}")
    assert [(role.name, role.workers, role.models[0][1]) for role in roles_of(live)] == [
        ("actor", 1, "smollm2-135m-instruct"),
        ("reference", 2, "other/model"),
    ]
    assert [role.name for role in roles_of(offline("algorithm={kind: sft}"))] == ["actor"]


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("rollout={}", "rollout: algorithm.kind=dpo samples nothing; remove the section rollout"),
        ("rewards=[{kind: number}]", "rewards: algorithm.kind=dpo needs no scores; remove the section rewards"),
        ("weight_sync={}", "weight_sync: algorithm.kind=dpo publishes no weights; remove the section weight_sync"),
        ("critic={}", "critic: algorithm.kind=dpo has no critic; remove the section critic"),
    ],
)
def test_a_section_without_meaning_is_refused(refused, section, message):
    assert refused(section) == message


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "data.max_prompt_tokens=64",
            "data.max_prompt_tokens=64: algorithm.kind=dpo learns from examples and does not read it; remove it, and "
            "set data.max_tokens, the limit of prompt and answer together",
        ),
        (
            "data.check_s=5",
            "data.check_s=5.0: algorithm.kind=dpo learns from examples and does not read it; remove it, because all "
            "examples are read before the start",
        ),
        (
            "data.drop_last_answer=true",
            "data.drop_last_answer=true: algorithm.kind=dpo learns from examples and does not read it; remove it, "
            "because the last answer is what is learnt",
        ),
        (
            "run.epochs=2",
            "run.epochs=2: run.steps=10 sets the length of the run too, in batches of algorithm.batch_size examples; "
            "remove one of them",
        ),
        (
            "data={kind: addition}",
            "data.kind=addition: it has questions without answers to learn from, which algorithm.kind=dpo needs; set "
            "data.kind to jsonl, parquet, csv, hub, custom or mixture",
        ),
        (
            "train.workers=65",
            "train.workers=65: an optimizer step has 64 examples (algorithm.batch_size), which are never split, so "
            "some workers would have none; set train.workers to 64 or less, or raise algorithm.batch_size",
        ),
        (
            "train.schedule.warmup_steps=10",
            "train.schedule.warmup_steps=10: the run has 10 optimizer steps (run.steps 10 * 1 a step), so the learning "
            "rate would never reach its peak; set train.schedule.warmup_steps to 9 or less, or raise run.steps or "
            "run.epochs",
        ),
        (
            "data.max_tokens=8193",
            "data.max_tokens=8193: does not fit into the context of smollm2-135m-instruct, 8192 tokens; set "
            "data.max_tokens to 8192 or less",
        ),
        (
            "reference=null",
            "reference=null: algorithm.kind=dpo compares the policy with a frozen reference; remove reference: null",
        ),
        (
            "reference.path=owner/name",
            "reference.path=owner/name: with reference.when=before the policy itself is the reference, before its "
            "first step, and model.path=smollm2-135m-instruct; set reference.when=during, or remove reference.path",
        ),
        (
            "reference.zero_stage=3",
            "reference.zero_stage=3: with reference.when=before the reference has no workers of its own; remove it, or "
            "set reference.when=during",
        ),
        (
            "run.evaluate_every=5",
            "run.evaluate_every=5: data.held_out=0, so there are no examples to evaluate on; set data.held_out to "
            "their share, for example 0.05, or remove run.evaluate_every",
        ),
        (
            "checkpoint.keep_best=eval/loss",
            "checkpoint.keep_best=eval/loss: it is measured only in evaluations; set run.evaluate_every and "
            "data.held_out, or remove checkpoint.keep_best",
        ),
        (
            "run.patience=2",
            "run.patience=2: it counts evaluations without a better value of checkpoint.keep_best, which is not set; "
            "set checkpoint.keep_best, for example to eval/loss, or remove run.patience",
        ),
    ],
)
def test_a_value_without_meaning_is_refused(refused, override, message):
    assert refused(override) == message


def test_a_format_of_prompts_is_refused_and_those_of_examples_are_listed(refused):
    message = refused("data.format=verl")
    assert message.startswith("data.format=verl: not a format of the examples that algorithm.kind=dpo reads; set ")
    assert "preference" in message and "gsm8k" not in message


def test_a_metric_that_a_kind_does_not_have_is_refused(refused):
    message = refused(
        "algorithm={kind: sft}", "checkpoint.keep_best=eval/accuracy", "run.evaluate_every=1", "data.held_out=0.1"
    )
    assert message == (
        "checkpoint.keep_best=eval/accuracy: no such metric of held-out examples; set it to one of eval/loss, "
        "eval/cross_entropy"
    )


def test_the_loss_of_dft_is_low_for_unlikely_answers_too_and_chooses_no_step(refused, offline):
    dft = ("algorithm={kind: sft, loss: dft}", "run.evaluate_every=1", "data.held_out=0.1")
    assert refused(*dft, "checkpoint.keep_best=eval/loss").startswith("checkpoint.keep_best=eval/loss: algorithm.loss")
    check(offline(*dft, "checkpoint.keep_best=eval/cross_entropy"), visible_gpus=0)


def test_a_whole_evaluation_passes(offline):
    evaluation = ("run.evaluate_every=5", "run.patience=2", "data.held_out=0.1", "checkpoint.keep_best=eval/accuracy")
    check(offline(*evaluation), visible_gpus=0)


def test_a_model_that_scores_needs_a_token_more_in_its_context(refused):
    assert refused("algorithm={kind: reward_model}", "data.max_tokens=8192") == (
        "data.max_tokens=8192: does not fit into the context of smollm2-135m-instruct, 8192 tokens; set "
        "data.max_tokens to 8191 or less"
    )


@pytest.mark.parametrize("kind", ["sft", "simpo", "{kind: dpo, reference_free: true}"])
def test_a_reference_that_nothing_compares_with_is_refused(refused, kind):
    algorithm = kind if kind.startswith("{") else f"{{kind: {kind}}}"
    assert "compares the policy with no reference; remove the section reference" in refused(
        f"algorithm={algorithm}", "reference={}"
    )


def test_kto_needs_two_examples_in_a_step():
    with pytest.raises(ValueError, match="greater than or equal to 2"):
        Kto(batch_size=1)


@pytest.mark.parametrize(
    ("override", "remedy"),
    [
        ("run.epochs=2", "remove it, and set run.steps"),
        ("run.evaluate_every=2", "remove it"),
        ("run.patience=2", "remove it"),
        ("checkpoint.keep_best=eval/loss", "remove it"),
        ("data.max_tokens=64", "remove it; data.max_prompt_tokens and rollout.max_tokens are the limits"),
        ("data.too_long=error", "remove it; longer prompts than data.max_prompt_tokens are always left out"),
        ("data.held_out=0.5", "remove it"),
        ("data.deduplicate=true", "remove it"),
        ("reference.when=during", "remove it, because the reference always works during training"),
    ],
)
def test_what_only_examples_need_is_refused_where_rollouts_are_learnt_from(load, override, remedy):
    with pytest.raises(ConfigError) as caught:
        check(load(override), visible_gpus=0)
    key, _, value = override.partition("=")
    assert str(caught.value) == (
        f"{key}={value}: algorithm.kind=grpo learns from rollouts and does not read it; {remedy}"
    )


def test_a_run_with_rollouts_needs_a_number_of_steps_and_says_where(offline):
    text = SMALLEST.replace("kind: dpo", "kind: grpo").replace(", steps: 10", "")
    for where, run in (("run.yaml:1", ()), ("override 'run.steps=null'", ("run.steps=null",))):
        with pytest.raises(ConfigError) as caught:
            offline(*run, text=text)
        assert str(caught.value) == (
            f"{where}: run.steps: missing, and algorithm.kind=grpo needs it; set the number of steps"
        )


def test_a_format_of_examples_is_refused_where_rollouts_are_learnt_from(load, write):
    config = load("data={kind: jsonl, path: run.yaml, format: kto}")
    with pytest.raises(ConfigError, match=r"^data.format=kto: not a format of the prompts"):
        check(config, visible_gpus=0)


@pytest.mark.parametrize("data", ["data.chat=false", "data={kind: mixture, parts: [{source: %s}]}"])
def test_a_system_prompt_needs_the_chat_template(refused, data):
    key = "data.parts.0.source" if "mixture" in data else "data"
    message = refused(data.replace("%s", "{kind: jsonl, path: examples.jsonl, chat: false}"), "data.system_prompt=Hi")
    assert message == (
        f"data.system_prompt=Hi: it is a message for the chat template, and {key}.chat=false feeds text without one; "
        "remove it, or put it into the text of the prompts"
    )


class TestMixture:
    MIXTURE = "data={kind: mixture, max_tokens: 99, parts: [{source: {kind: jsonl, path: examples.jsonl}}, %s]}"

    def test_its_sources_have_its_settings(self, offline):
        config = offline(self.MIXTURE % "{weight: 0.5, source: {kind: hub, name: owner/name, format: kto}}")
        check(config, visible_gpus=0)
        assert isinstance(config.data, Mixture)
        first, second = config.data.sources
        assert (first.kind, first.max_tokens, second.kind, second.max_tokens) == ("jsonl", 99, "hub", 99)
        assert [part.weight for part in config.data.parts] == [1.0, 0.5]

    @pytest.mark.parametrize(
        ("part", "message"),
        [
            (
                "{source: {kind: hub, name: a/b, held_out: 0.1}}",
                "data.parts.1.source.held_out=0.1: all parts of a mixture have the same value; remove it, and set "
                "data.held_out",
            ),
            (
                "{source: {kind: csv, path: absent.csv}}",
                "data.parts.1.source.path=absent.csv: no such file (",
            ),
            (
                "{source: {kind: hub, name: a/b, format: gsm8k}}",
                "data.parts.1.source.format=gsm8k: not a format of the examples that algorithm.kind=dpo reads; set "
                "data.parts.1.source.format to auto or one of prompt_completion",
            ),
        ],
    )
    def test_a_part_is_checked_like_a_source(self, refused, part, message):
        assert refused(self.MIXTURE % part).startswith(message)

    def test_a_part_without_source_is_told_where_its_keys_belong(self, offline):
        with pytest.raises(
            ConfigError, match=r"data.parts.1.kind: unknown key, .*; did you mean data.parts.1.source.k"
        ):
            offline(self.MIXTURE % "{kind: jsonl, path: examples.jsonl}")

    def test_a_reward_model_reads_all_parts_in_one_way(self, offline, refused):
        mixed = self.MIXTURE % "{source: {kind: jsonl, path: examples.jsonl, chat: false}}"
        assert refused("algorithm={kind: reward_model}", mixed) == (
            "data.parts.1.source.chat=false: other parts go through the chat template, and a reward model reads all "
            "texts in one way; set the same value in all parts"
        )
        check(offline("algorithm={kind: sft}", mixed), visible_gpus=0)
        plain = "data={kind: mixture, parts: [{source: {kind: jsonl, path: examples.jsonl, chat: false}}]}"
        assert (uses_chat(offline(mixed).data), uses_chat(offline(plain).data)) == (True, False)

    def test_it_is_refused_where_rollouts_are_learnt_from(self, load):
        with pytest.raises(ConfigError, match=r"^data.kind=mixture: algorithm.kind=grpo learns from rollouts"):
            check(load("data={kind: mixture, parts: [{source: {kind: hub, name: a/b}}]}"), visible_gpus=0)


class TestResume:
    @pytest.fixture
    def resume(self, offline):
        def changed(*overrides, before=()):
            return changes(yaml.safe_load(dump_config(offline(*before))), offline(*before, *overrides))

        return changed

    def test_its_length_and_evaluation_may_change(self, resume):
        assert resume("run.steps=20", "checkpoint.keep_best=eval/loss", "algorithm.beta=0.2") == [
            "run.steps: 10 -> 20",
            "algorithm.beta: 0.1 -> 0.2",
            "checkpoint.keep_best: null -> eval/loss",
        ]

    @pytest.mark.parametrize(
        ("before", "override", "reason"),
        [
            ("algorithm={kind: dpo}", "algorithm={kind: ipo}", "the data and the checkpoint are for that algorithm"),
            ("algorithm={kind: dpo}", "algorithm.batch_size=8", "the saved position in the data assumes it"),
            ("algorithm={kind: dpo}", "data.held_out=0.5", "the saved position belongs to these prompts"),
            (
                "algorithm={kind: dpo}",
                "reference.when=during",
                "the reference must be the policy before its first step",
            ),
            ("algorithm={kind: sft}", "algorithm.train_on=all", "it decides which tokens of the examples"),
            ("algorithm={kind: reward_model}", "algorithm.members=3", "the checkpoint has the weights of that many"),
        ],
    )
    def test_what_the_checkpoint_depends_on_must_not(self, resume, before, override, reason):
        with pytest.raises(ConfigError, match=reason):
            resume(override, before=[before])

    def test_a_run_with_rollouts_is_not_continued_with_examples(self, load, offline):
        before = yaml.safe_load(dump_config(load()))
        with pytest.raises(ConfigError, match=r"algorithm.kind=dpo: the run had grpo"):
            changes(before, offline())


def test_the_union_of_kinds_has_all_classes():
    assert {kind.model_fields["kind"].default for kind in get_args(OfflineKinds)} == set(KINDS)
