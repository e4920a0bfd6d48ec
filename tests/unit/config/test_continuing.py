"""Runs that continue adapters from a folder of peft: what comes from the folder, and what is refused."""

import json
import struct

import pytest

from ray_rl.config.loading.load import dump_config, load_config
from ray_rl.config.roles import base_reference, keeps_start, models_of
from ray_rl.config.rules.resume import changes
from ray_rl.errors import ConfigError

SETTINGS = {
    "peft_type": "LORA",
    "base_model_name_or_path": "smollm2-135m-instruct",
    "r": 4,
    "lora_alpha": 8,
    "use_rslora": True,
    "target_modules": "all-linear",
    "bias": "none",
    "lora_dropout": 0.05,
    "inference_mode": True,
    "layers_to_transform": None,
    "rank_pattern": {},
}
LAYERS = ("self_attn.q_proj", "mlp.down_proj")
NAMES = [
    f"base_model.model.model.layers.{i}.{layer}.lora_{part}.weight" for i in "01" for layer in LAYERS for part in "AB"
]


def write_folder(folder, *, names=NAMES, **settings):
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(SETTINGS | settings))
    header = {name: {"dtype": "F32", "shape": [1], "data_offsets": [4 * i, 4 * i + 4]} for i, name in enumerate(names)}
    text = json.dumps(header).encode()
    (folder / "adapter_model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(4 * len(names)))
    return folder


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "adapters")


PATH = "model.path=adapters"


def test_a_folder_of_adapters_stands_for_its_model_and_is_continued(passes, folder):
    config = passes(PATH)
    assert config.model.path == "smollm2-135m-instruct"
    adapter = config.model.adapter
    assert (adapter.path, adapter.rank, adapter.alpha, adapter.rs_lora) == ("adapters", 4, 8.0, True)
    assert adapter.targets == ["down_proj", "q_proj"]
    assert adapter.dropout == 0, "dropout belongs to the training, not to the values"
    assert config.model.chat_template is None
    assert config.train.learning_rate == 1e-5, "that of adapters"


def test_the_template_of_the_folder_comes_with_it(load, folder):
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    assert load(PATH).model.chat_template == "adapters/chat_template.jinja"
    assert load(PATH, "model.chat_template=own.jinja").model.chat_template == "own.jinja"
    assert load("model.adapter={path: adapters}").model.chat_template is None, "here the model is named"


def test_the_model_can_be_named_apart(passes, folder):
    named = passes("model.adapter={path: adapters}")
    assert named == passes(PATH)


def test_what_is_written_can_be_loaded_and_resumed(load, write, folder):
    import yaml

    config = load(PATH)
    assert load_config(write(dump_config(config), "again.yaml")) == config
    before = yaml.safe_load(dump_config(config))
    assert changes(before, load(PATH)) == []
    with pytest.raises(ConfigError, match=r"model\.adapter\.path=other: the run had adapters"):
        changes(
            before, load("model.adapter={path: other, rank: 4, alpha: 8, rs_lora: true, targets: [down_proj, q_proj]}")
        )


def test_other_sizes_than_those_of_the_folder_are_refused(passes, refused, folder):
    passes(PATH, "model.adapter={rank: 4, alpha: 8, targets: [q_proj, down_proj]}")
    assert refused(PATH, "model.adapter.rank=8") == (
        "model.adapter.rank=8: the adapters in adapters have 4, and their values mean nothing without it; remove it"
    )
    assert "model.adapter.rs_lora=false: the adapters in adapters have true" in refused(
        PATH, "model.adapter={rs_lora: false}"
    )
    assert "model.adapter.targets=all-linear: the adapters in adapters have ['down_proj', 'q_proj']" in (
        refused(PATH, "model.adapter={targets: all-linear}")
    )
    assert "model.adapter.init=gaussian: the adapters start as in" in refused(PATH, "model.adapter={init: gaussian}")


def test_all_linear_is_the_same_as_the_names_of_all_layers(passes, tmp_path):
    every = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    write_folder(
        tmp_path / "adapters",
        names=[f"base_model.model.model.layers.0.x.{n}.lora_{p}.weight" for n in every for p in "AB"],
    )
    assert passes(PATH, "model.adapter={targets: all-linear}").model.adapter.targets == "all-linear"


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"use_dora": True}, "use_dora=true"),
        ({"modules_to_save": ["lm_head"]}, 'modules_to_save=["lm_head"]'),
        ({"rank_pattern": {"q_proj": 8}}, 'rank_pattern={"q_proj": 8}'),
        ({"bias": "lora_only"}, 'bias="lora_only"'),
        ({"layers_to_transform": [0]}, "layers_to_transform=[0]"),
        ({"init_lora_weights": "pissa"}, 'init_lora_weights="pissa"'),
        ({"a_new_feature": 3}, "a_new_feature=3"),
    ],
)
def test_more_than_plain_adapters_is_refused_by_its_name(refused, tmp_path, settings, name):
    write_folder(tmp_path / "adapters", **settings)
    assert refused(PATH) == (
        f"model.adapter.path=adapters: it has {name}, which a run cannot continue; merge the adapters into their model "
        "and set model.path to the result"
    )


def test_a_tensor_that_is_no_adapter_is_refused(refused, tmp_path):
    write_folder(tmp_path / "adapters", names=[*NAMES, "base_model.model.lm_head.weight"])
    assert "it has tensor base_model.model.lm_head.weight, which a run cannot continue" in refused(PATH)


@pytest.mark.parametrize("settings", [{"init_lora_weights": "gaussian"}, {"revision": "main"}, {"bias": "none"}])
def test_what_does_not_change_trained_adapters_is_accepted(passes, tmp_path, settings):
    write_folder(tmp_path / "adapters", **settings)
    passes(PATH)


def test_a_folder_that_cannot_be_read_is_refused(refused, tmp_path, folder):
    assert "model.adapter.path=nowhere: there is no such folder" in refused("model.adapter={path: nowhere}")
    write_folder(folder, peft_type="IA3")
    assert "model.path=adapters: adapter_config.json has peft_type=IA3, and only LORA can be continued" in refused(PATH)
    write_folder(folder, base_model_name_or_path=None)
    assert (
        "model.path=adapters: the folder has adapters without the model that they belong to, and does not name it"
        in (refused(PATH))
    )
    write_folder(folder)
    assert "and model.adapter.path=b has others; remove one of them" in refused(PATH, "model.adapter={path: b}")
    (folder / "adapter_model.safetensors").write_bytes(b"version https://git-lfs")
    assert "adapter_model.safetensors has 23 bytes and no header of safetensors" in refused(
        "model.adapter={path: adapters}"
    )
    (folder / "adapter_model.safetensors").unlink()
    assert "there is no adapter_model.safetensors" in refused("model.adapter={path: adapters}")


def test_other_models_must_be_whole(refused, folder):
    assert "reference.path=./adapters: the folder has adapters without the model" in (
        refused("algorithm.kl.coefficient=0.1", "reference.path=./adapters")
    )


def test_the_reference_has_the_continued_adapters_unless_it_is_their_model(passes, refused, folder):
    penalty = "algorithm.kl.coefficient=0.1"
    continued = [passes(PATH, penalty), passes(PATH, penalty, "reference.path=adapters")]
    bare, other = (passes(PATH, penalty, f"reference.path={path}") for path in ("smollm2-135m-instruct", "owner/other"))
    assert [keeps_start(each) for each in (*continued, bare, other, passes(PATH))] == [True, True, False, False, False]
    assert [base_reference(each) is not None for each in (*continued, bare, other)] == [True, True, True, False]
    assert ("model.path", "smollm2-135m-instruct") in models_of(bare)
    assert not keeps_start(passes("model.adapter={kind: lora}", penalty))
    assert refused(PATH, penalty, "reference.workers=2") == (
        "reference.workers=2: with model.adapter the reference is the policy with the adapters that it continues, in "
        "the actor's workers; remove it"
    )
