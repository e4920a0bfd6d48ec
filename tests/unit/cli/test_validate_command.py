"""What `train` refuses before it starts anything, `validate` refuses with the same words."""

import json

import pytest
import yaml

from ray_rl.app import before_start
from ray_rl.cli.main import main
from ray_rl.config.loading.load import load_config
from ray_rl.errors import UserError
from ray_rl.preflight import functions
from tests.algorithm import algorithm

ROW = {"prompt": "What is 1+2?", "answer": "3"}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The working folder, with a configuration and data that are right."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_RL_CACHE", str(tmp_path / "cache"))
    config = {
        "run": {"name": "first", "steps": 2},
        "model": {"path": "smollm2-135m-instruct"},
        "data": {"kind": "jsonl", "path": "train.jsonl", "max_prompt_tokens": 64},
        "rewards": [{"kind": "number"}],
        "algorithm": algorithm(),
        "rollout": {"max_tokens": 16},
        "cluster": {"accelerator": "cpu"},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "train.jsonl").write_text(json.dumps(ROW) + "\n")
    (tmp_path / "validate_rewards.py").write_text("def brevity(completions, **columns):\n    return [0.0]\n")
    return tmp_path


def run_folder(place):
    (place / "runs" / "first").mkdir(parents=True)


def unwritable(place):
    (place / "runs").write_text("")


def row_without_answer(place):
    with (place / "train.jsonl").open("a") as file:
        file.write('{"prompt": "What is 2+2?"}\n')


def model_folder(settings):
    def write(place):
        (place / "model").mkdir()
        (place / "model" / "config.json").write_text(json.dumps(settings))

    return write


def model_with(tokens=0, *, head=True):
    """A model of 27 rows whose checkpoint has its head or not, and its tokenizer so many tokens at least."""

    def write(place):
        from tests.tiny_model import write_tiny_model

        folder = write_tiny_model(place / "model")
        settings = json.loads((folder / "config.json").read_text())
        if not head:
            (folder / "config.json").write_text(json.dumps(settings | {"tie_word_embeddings": False}))
        tokenizer = json.loads((folder / "tokenizer.json").read_text())
        added = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        for index in range(settings["vocab_size"], tokens):
            tokenizer["added_tokens"].append({"id": index, "content": f"<|extra{index}|>", **added})
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer))

    return write


def nothing(place):
    pass


QUICK = {
    "reward function": (nothing, ["rewards=[{kind: custom, function: 'validate_rewards:brevty'}]"], "has no 'brevty'"),
    "reward module": (nothing, ["rewards=[{kind: custom, function: 'no_rewards:f'}]"], "no module named 'no_rewards'"),
    "advantage": (
        nothing,
        ["algorithm.advantage={kind: custom, function: 'validate_rewards:brevty'}"],
        "error: algorithm.advantage.function=validate_rewards:brevty: validate_rewards has no 'brevty'",
    ),
    "loss": (
        nothing,
        ["algorithm.loss={kind: custom, function: 'no_losses:f'}"],
        "error: algorithm.loss.function=no_losses:f: no module named 'no_losses'",
    ),
    "column": (nothing, ["rewards=[{kind: number, column: solution}]"], "no column 'solution'"),
    "row": (row_without_answer, [], "train.jsonl:2: no column 'answer'"),
    "custom data": (nothing, ["data={kind: custom, function: 'validate_rewards:rows'}"], "has no 'rows'"),
    "place of the run folder": (unwritable, [], "is not a folder that you may write to"),
}
FULL = {
    "model family": (
        model_folder({"model_type": "no_such_family"}),
        ["model.path=./model"],
        "model.path=model: cannot be loaded",
    ),
    "tokenizer": (
        model_folder({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}),
        ["model.path=./model"],
        "no tokenizer could be loaded",
    ),
    "head of the policy": (model_with(head=False), ["model.path=./model"], "model has no lm_head.weight: these would"),
    "head of the reference": (
        model_with(head=False),
        ["reference={path: ./model}", "algorithm.kl.coefficient=0.1"],
        "reference.path: the checkpoint of model has no lm_head.weight",
    ),
    "backbone of the critic": (
        model_with(head=False),
        ["critic={path: ./model}", "algorithm={kind: ppo}"],
        "critic.path: the checkpoint of model has no lm_head.weight",
    ),
    "rows of the policy": (
        model_with(tokens=40),
        ["model.path=./model"],
        "the tokenizer's token '<|extra39|>' has the id 39, and the model has 27 rows",
    ),
    "family of the critic": (
        model_folder({"model_type": "no_such_family"}),
        ["critic={path: ./model}", "algorithm={kind: ppo}"],
        "cannot be loaded",
    ),
}


@pytest.mark.parametrize("name", QUICK)
def test_what_needs_no_torch_is_refused_by_default_in_the_words_of_train(place, capsys, name):
    arrange, overrides, words = QUICK[name]
    arrange(place)
    assert main(["validate", "run.yaml", *overrides]) == 2
    refused = capsys.readouterr()
    assert words in refused.err
    assert main(["train", "run.yaml", *overrides]) == 2
    assert capsys.readouterr().err == refused.err


@pytest.mark.parametrize("name", FULL)
def test_models_and_tokenizers_are_refused_by_the_full_checks_in_the_words_of_train(place, capsys, name):
    arrange, overrides, words = FULL[name]
    arrange(place)
    capsys.readouterr()
    assert main(["validate", "run.yaml", *overrides, "--full"]) == 2
    refused = capsys.readouterr()
    assert words in refused.err
    assert main(["train", "run.yaml", *overrides]) == 2
    assert capsys.readouterr().err == refused.err


def test_a_right_configuration_passes_the_full_checks(place, capsys):
    assert main(["validate", "run.yaml", "--full"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "run.yaml: valid",
        "  2 steps of 8 prompts x 8 completions, 2 optimizer steps",
        "  on CPU: actor 1, engines 1",
    ]
    assert not (place / "runs").exists()


def test_the_last_lines_say_what_was_not_checked_and_what_checks_it(place, capsys):
    (place / "validate_data.py").write_text("def rows():\n    raise RuntimeError\n")
    reward = "rewards=[{kind: number}, {kind: custom, function: 'validate_rewards:brevity'}]"
    assert main(["validate", "run.yaml", "data={kind: custom, function: 'validate_data:rows'}", reward]) == 0
    assert capsys.readouterr().out.splitlines()[-2:] == [
        "  not checked: rows of data.function, tokenizer, models and installed packages; add --full",
        "  not called: rewards[1].function; the first step of `train` calls it",
    ]
    assert main(["validate", "run.yaml", "data={kind: hub, name: openai/gsm8k}"]) == 0
    assert capsys.readouterr().out.splitlines()[-1:] == [
        "  not checked: rows of the hub, tokenizer, models and installed packages; add --full"
    ]
    assert main(["validate", "run.yaml"]) == 0
    last = "  not checked: tokenizer, models and installed packages; add --full"
    assert capsys.readouterr().out.splitlines()[-1:] == [last]


def test_a_learning_rate_of_full_fine_tuning_is_remarked_under_adapters(place, capsys):
    assert main(["validate", "run.yaml", "model.adapter={kind: lora}", "train.learning_rate=1e-6"]) == 0
    assert (
        "  note: train.learning_rate=1e-06 looks like one of full fine-tuning (default 1e-06); adapters learn with "
        "about 10 times as much, 1e-05\n"
    ) in capsys.readouterr().out
    assert main(["validate", "run.yaml", "model.adapter={kind: lora}"]) == 0
    assert "fine-tuning" not in capsys.readouterr().out


def test_weights_in_4_bits_need_a_package_and_the_error_names_the_extra_that_has_it(place, monkeypatch):
    monkeypatch.setattr(before_start, "find_spec", lambda name: None)
    before_start.check_quantisation(load_config("run.yaml", ["model.adapter={kind: lora}"]))
    with pytest.raises(UserError) as caught:
        before_start.check_quantisation(load_config("run.yaml", ["model.adapter={quantise: nf4}"]))
    assert str(caught.value) == (
        "model.adapter.quantise=nf4 needs bitsandbytes, which is not installed; pip install 'ray-rl[qlora]'"
    )


def test_a_run_folder_that_exists_is_a_remark_as_only_a_start_needs_its_place(place, capsys):
    run_folder(place)
    assert main(["validate", "run.yaml"]) == 0
    remark = "run.name=first: runs/first exists already, and a run folder is never overwritten; set run.name to a new"
    assert f"  note: {remark} name" in capsys.readouterr().out
    assert main(["train", "run.yaml"]) == 2
    assert f"error: {remark} name" in capsys.readouterr().err


def test_a_run_that_may_be_continued_is_valid_with_resume(place):
    run_folder(place)
    assert main(["validate", "run.yaml", "--resume", "auto"]) == 0


def test_a_base_install_checks_what_it_can_and_says_what_it_cannot_read(place, capsys, monkeypatch):
    monkeypatch.setitem(before_start.READS, "jsonl", "no_such_package")
    assert main(["validate", "run.yaml", "rewards=[{kind: number, column: solution}]"]) == 0
    assert "note: the rows were not read, as no_such_package is not installed here" in capsys.readouterr().out


def test_a_base_install_says_which_functions_it_cannot_call(place, capsys, monkeypatch):
    monkeypatch.setattr(functions, "find_spec", lambda name: None)
    custom = "{kind: custom, function: 'validate_rewards:brevity'}"
    assert main(["validate", "run.yaml", f"algorithm.advantage={custom}", f"algorithm.loss={custom}"]) == 0
    said = "note: algorithm.advantage.function and algorithm.loss.function not called, as torch is not installed here"
    assert said in capsys.readouterr().out


def test_examples_are_converted_without_a_tokenizer(place, capsys, monkeypatch):
    monkeypatch.chdir(place)
    pair = {"prompt": "6*7?", "chosen": "42", "rejected": "41"}
    (place / "pairs.jsonl").write_text("\n".join(map(json.dumps, [pair, pair | {"chosen": None}])))
    (place / "dpo.yaml").write_text(
        "run: {name: dpo}\nmodel: {path: smollm2-135m-instruct}\nalgorithm: {kind: dpo}\n"
        "data: {kind: jsonl, path: pairs.jsonl}\ncluster: {accelerator: cpu}\n"
    )
    assert main(["validate", "dpo.yaml"]) == 2
    assert "pairs.jsonl:2: chosen is None; write text" in capsys.readouterr().err
    assert main(["validate", "dpo.yaml", "data.on_bad_row=skip"]) == 0
    assert "  1 epoch, in optimizer steps of 64 pairs\n  on CPU: actor 1\n" in capsys.readouterr().out
    assert main(["validate", "dpo.yaml", "algorithm={kind: kto}"]) == 2
    part = "{source: {kind: hub, name: a/b}}, {source: {kind: jsonl, path: pairs.jsonl, on_bad_row: stop}}"
    assert main(["validate", "dpo.yaml", f"data={{kind: mixture, on_bad_row: skip, parts: [{part}]}}"]) == 0
    assert "not checked: rows of the hub and of functions, tokenizer" in capsys.readouterr().out
