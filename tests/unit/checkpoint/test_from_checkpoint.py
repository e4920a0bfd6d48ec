"""Models out of checkpoints that were written by ranks of several numbers, compared with the weights saved in them."""

import json
import shutil
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from ray_rl.catalog.shapes import reads_chat
from ray_rl.catalog.weight_files import weights_digest
from ray_rl.checkpoint.export_folder import export_run
from ray_rl.checkpoint.export_marks import exported_step, model_folders
from ray_rl.checkpoint.slices import write_slices
from ray_rl.checkpoint.store import CheckpointStore, write_json
from ray_rl.cli.main import main
from ray_rl.config.adapter import Lora
from ray_rl.config.loading.load import dump_config
from ray_rl.config.run import RunConfig
from ray_rl.errors import CheckpointError, UserError
from ray_rl.models.quantised import round_weights
from tests.algorithm import algorithm
from tests.tiny_model import write_tiny_model

FROZEN = ("model.embed_tokens.weight", "model.layers.0.")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = write_tiny_model(tmp_path_factory.mktemp("model"))
    (folder / "generation_config.json").write_text('{"temperature": 0.6, "top_p": 0.9}')
    return folder


@cache
def masters(source: Path, step: int) -> dict[str, torch.Tensor]:
    """Float32 weights of a step that bfloat16 has to round."""
    weights = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).named_parameters()
    return {name: (weight.detach() * (1 + step / 7)).clone() for name, weight in weights}


LORA = {"rank": 4, "alpha": 2, "targets": ["q_proj", "down_proj"]}


@cache
def adapters(source: Path, step: int) -> dict[str, torch.Tensor]:
    """Float32 adapters of a step, by their names in the trainer's model without `causal_lm.`."""
    random = torch.Generator().manual_seed(step)
    found = {}
    for name, weight in masters(source, 0).items():
        stem = name.removesuffix(".weight")
        if stem.endswith(tuple(LORA["targets"])):
            found[f"{stem}.lora_A.default.weight"] = torch.randn(4, weight.shape[1], generator=random)
            found[f"{stem}.lora_B.default.weight"] = torch.randn(weight.shape[0], 4, generator=random)
    return found


def run_folder(
    place: Path,
    source: Path,
    *,
    steps=(1, 2),
    ranks=2,
    dtype="bfloat16",
    frozen_layers=0,
    relative=False,
    exported_adapter=None,
    quantise=None,
):
    """A stopped run with checkpoints of these steps, by so many ranks that hold equal shares as under ZeRO-3."""
    run = place / "runs" / "first"
    config = RunConfig.model_validate(
        {
            "run": {"name": "first", "dir": str(run.parent), "steps": 5},
            "model": {"path": source.name if relative else str(source), "dtype": dtype},
            "data": {"kind": "addition"},
            "rewards": [{"kind": "number"}],
            "algorithm": algorithm(),
            "train": {"frozen_layers": frozen_layers},
            **({} if exported_adapter is None else {"checkpoint": {"export_adapter": exported_adapter}}),
        }
    )
    if exported_adapter is not None:
        model = config.model.model_copy(update={"adapter": Lora(**LORA, quantise=quantise)})
        config = config.model_copy(update={"model": model})
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(dump_config(config))
    (run / "environment.json").write_text(json.dumps({"working_directory": str(source.parent)}))
    store = CheckpointStore(run / "checkpoints", keep_last=9, keep_every=None)
    for step in steps:
        folder = store.begin(step) / "actor"
        for rank in range(ranks):
            slices = []
            trained = masters if exported_adapter is None else adapters
            for name, weight in trained(source, step).items():
                if frozen_layers and name.startswith(FROZEN):
                    continue
                flat = weight.flatten()
                share = -(-len(flat) // ranks)
                part = flat[rank * share : (rank + 1) * share]
                slices.append((f"master/causal_lm.{name}", rank * share, part))
                slices.append((f"exp_avg/causal_lm.{name}", rank * share, part * 0.5))
            write_slices(folder / f"rank_{rank}.safetensors", slices, {"steps": step})
        models = {"actor": [[str(source), weights_digest(source)]]}
        write_json(folder.parent / "run.json", {"step": step, "models": models})
        store.commit(step)
    return run


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_weights_are_the_masters_of_the_step_in_the_dtype_of_the_run(tmp_path, source, ranks, dtype):
    run = run_folder(tmp_path, source, ranks=ranks, dtype=dtype)
    to = export_run(run, to=tmp_path / "mine", step=1)
    assert exported_step(to) == 1
    seen = load_file(to / "model.safetensors")
    expected = masters(source, 1)
    assert seen.keys() == expected.keys()
    for name, weight in expected.items():
        assert torch.equal(seen[name], weight.to(getattr(torch, dtype))), name
    assert json.loads((to / "config.json").read_text())["dtype"] == dtype
    assert AutoModelForCausalLM.from_pretrained(to).dtype == getattr(torch, dtype)


def test_the_newest_step_is_the_default_and_the_folder_is_in_the_run(tmp_path, source, capsys):
    run = run_folder(tmp_path, source)
    assert main(["export", str(run)]) == 0
    assert f"exported step 2 of {run} to {run}/export_step_2\n" in capsys.readouterr().out
    assert exported_step(run / "export_step_2") == 2


def test_a_step_that_does_not_exist_is_refused_with_those_that_do(tmp_path, source, capsys):
    run = run_folder(tmp_path, source)
    assert main(["export", str(run), "--step", "7"]) == 2
    assert capsys.readouterr().err == (
        f"ray-rl: error: --step 7: {run} has no checkpoint of that step; there are steps 1, 2\n"
    )


def test_float32_gives_the_masters_themselves(tmp_path, source):
    run = run_folder(tmp_path, source, dtype="bfloat16")
    to = export_run(run, to=tmp_path / "mine", step=2, dtype="float32")
    for name, weight in load_file(to / "model.safetensors").items():
        assert torch.equal(weight, masters(source, 2)[name]), name


def test_frozen_weights_are_those_of_the_model_that_the_run_started_from(tmp_path, source):
    run = run_folder(tmp_path, source, frozen_layers=1, dtype="float32")
    seen = load_file(export_run(run, to=tmp_path / "mine") / "model.safetensors")
    before, after = masters(source, 0), masters(source, 2)
    assert seen.keys() == before.keys()
    for name, weight in seen.items():
        assert torch.equal(weight, before[name] if name.startswith(FROZEN) else after[name]), name


def test_frozen_weights_out_of_a_model_that_has_changed_since_are_refused(tmp_path, source):
    own = shutil.copytree(source, tmp_path / "model")
    run = run_folder(tmp_path, own, frozen_layers=1)
    write_tiny_model(own, seed=1)
    with pytest.raises(CheckpointError, match=r"its weights have changed since the checkpoint \(blake2b-sampled:"):
        export_run(run, to=tmp_path / "mine")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_adapters_are_merged_into_the_model_that_the_run_started_from(tmp_path, source, dtype):
    run = run_folder(tmp_path, source, dtype=dtype, exported_adapter="merged")
    seen = load_file(export_run(run, to=tmp_path / "mine", step=1) / "model.safetensors")
    parts, dtype = adapters(source, 1), getattr(torch, dtype)
    assert seen.keys() == masters(source, 0).keys()
    changed = 0
    for name, weight in masters(source, 0).items():
        stem = name.removesuffix(".weight")
        a, b = (parts.get(f"{stem}.lora_{part}.default.weight") for part in "AB")
        expected = weight.to(dtype)
        if a is not None:
            # The types of the run: that is what engines have.
            expected = (expected.float() + 0.5 * b.to(dtype).float() @ a.to(dtype).float()).to(dtype)
            changed += 1
        torch.testing.assert_close(seen[name], expected, rtol=0, atol=1e-6 if dtype == torch.float32 else 0.07)
    assert changed == len(parts) / 2 > 0


def test_adapters_over_weights_in_4_bits_are_merged_into_the_values_of_these(tmp_path, source):
    run = run_folder(tmp_path, source, dtype="float32", exported_adapter="merged", quantise="nf4")
    seen = load_file(export_run(run, to=tmp_path / "mine", step=1) / "model.safetensors")
    rounded, parts = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32), adapters(source, 1)
    round_weights(rounded.base_model)
    for name, weight in rounded.named_parameters():
        stem = name.removesuffix(".weight")
        a, b = (parts.get(f"{stem}.lora_{part}.default.weight") for part in "AB")
        expected = weight if a is None else weight + 0.5 * b @ a
        torch.testing.assert_close(seen[name], expected, rtol=0, atol=1e-6)
        assert torch.equal(weight, masters(source, 0)[name]) == ("proj" not in name)


def test_adapters_alone_are_a_folder_of_peft_for_the_model_that_the_run_started_from(tmp_path, source):
    run = run_folder(tmp_path, source, dtype="float32", exported_adapter="peft")
    to = export_run(run, to=tmp_path / "mine")
    assert exported_step(to) == 2
    assert (to / "tokenizer.json").is_file() and not (to / "config.json").exists()
    settings = json.loads((to / "adapter_config.json").read_text())
    assert (settings["peft_type"], settings["r"], settings["lora_alpha"]) == ("LORA", 4, 2)
    assert (settings["target_modules"], settings["base_model_name_or_path"]) == (["down_proj", "q_proj"], str(source))
    assert json.loads((to / "ray_rl.json").read_text())["base"] == weights_digest(source)
    merged = export_run(
        run_folder(tmp_path / "other", source, dtype="float32", exported_adapter="merged"), to=tmp_path / "merged"
    )
    tokens = torch.arange(3, 12)[None]
    with torch.no_grad():
        # transformers loads the model, and peft its adapters.
        apart, whole = (AutoModelForCausalLM.from_pretrained(folder)(tokens).logits for folder in (to, merged))
        start = AutoModelForCausalLM.from_pretrained(source)(tokens).logits
    torch.testing.assert_close(apart, whole, rtol=1e-4, atol=1e-4)
    assert (apart - start).abs().max() > 0.1
    write_tiny_model(own := shutil.copytree(source, tmp_path / "model"), seed=0)
    changed = run_folder(tmp_path / "third", own, exported_adapter="peft")
    write_tiny_model(own, seed=1)
    with pytest.raises(CheckpointError, match="its weights have changed since the checkpoint"):
        export_run(changed, to=tmp_path / "third/mine")


def test_a_finished_run_is_copied_and_an_extended_one_made_of_its_newest_checkpoint(tmp_path, source):
    run = run_folder(tmp_path, source, steps=(1, 2))
    export_run(run, to=run / "export", step=1)
    (run / "export" / "mark").touch()
    assert exported_step(export_run(run, to=tmp_path / "newest")) == 2
    assert (export_run(run, to=tmp_path / "copy", step=1) / "mark").exists()
    export_run(run, to=tmp_path / "two", step=2)
    assert exported_step(tmp_path / "two") == 2


def test_a_finished_run_says_where_its_model_is(tmp_path, source, capsys):
    run = run_folder(tmp_path, source, steps=(2,))
    export_run(run, to=run / "export")
    assert main(["export", str(run)]) == 0
    assert capsys.readouterr().out.endswith(f"{run}/export already holds step 2 of {run}; give --to DIR for a copy\n")


def test_a_damaged_checkpoint_is_refused_and_the_others_named(tmp_path, source):
    run = run_folder(tmp_path, source)
    file = run / "checkpoints" / "step_2" / "actor" / "rank_0.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"SHA-256 .* expected, .* seen; give another: --step 1"):
        export_run(run, to=tmp_path / "mine")
    assert not (tmp_path / "mine").exists()


def test_nothing_of_the_run_is_touched_while_it_is_in_progress(tmp_path, source):
    run = run_folder(tmp_path, source)
    folder = run / "checkpoints"
    for name in (".step_3.writing", ".step_1.replaced", ".step_9.replaced", ".step_0.removing"):
        (folder / name).mkdir()
    before = sorted(path.name for path in folder.iterdir())
    export_run(run, to=tmp_path / "mine")
    assert sorted(path.name for path in folder.iterdir()) == before


def test_a_checkpoint_of_another_model_is_refused(tmp_path, source):
    run = run_folder(tmp_path, source)
    other = tmp_path / "other"
    write_tiny_model(other)
    settings = json.loads((other / "config.json").read_text())
    from transformers import LlamaConfig, LlamaForCausalLM

    LlamaForCausalLM(LlamaConfig(**settings | {"intermediate_size": 128})).save_pretrained(other)
    config = (run / "config.yaml").read_text().replace(str(source), str(other))
    (run / "config.yaml").write_text(config)
    with pytest.raises(CheckpointError, match=r"0.mlp.down_proj.weight has 16384 elements in the model and 32768 in"):
        export_run(run, to=tmp_path / "mine")


def test_a_relative_path_of_the_model_is_one_of_the_folder_that_the_run_was_started_in(tmp_path, source, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = run_folder(tmp_path, source, relative=True)
    assert exported_step(export_run(run, to=tmp_path / "mine")) == 2


def test_a_folder_that_is_no_run_is_named(tmp_path):
    store = CheckpointStore(tmp_path / "checkpoints", keep_last=1, keep_every=None)
    (store.begin(1) / "file").touch()
    store.commit(1)
    with pytest.raises(UserError, match=r"not a run folder, it has no config.yaml"):
        export_run(tmp_path, to=tmp_path / "mine")


@pytest.mark.parametrize("members", [1, 2])
def test_reward_models_are_exported_as_classifiers_with_their_trained_heads(tmp_path, source, members):
    config = RunConfig.model_validate(
        {
            "run": {"name": "first", "dir": str(tmp_path), "steps": 5},
            "model": {"path": str(source), "dtype": "float32"},
            "data": {"kind": "jsonl", "path": "pairs.jsonl", "chat": members == 1},
            "algorithm": {"kind": "reward_model", "members": members},
        }
    )
    run = tmp_path / "first"
    run.mkdir()
    (run / "config.yaml").write_text(dump_config(config))
    store = CheckpointStore(run / "checkpoints", keep_last=9, keep_every=None)
    folder = store.begin(3)
    heads = [{"score.weight": torch.arange(128.0)[None] - member} for member in range(members)]
    trained = [masters(source, 3 + member) | head for member, head in enumerate(heads)]
    slices = [
        (f"master/member_{member}.{name}", 0, weight.flatten())
        for member, weights in enumerate(trained)
        for name, weight in weights.items()
    ]
    write_slices(folder / "actor" / "rank_0.safetensors", slices, {"steps": 3})
    write_json(folder / "run.json", {"step": 3, "models": {}})
    store.commit(3)
    to = export_run(run, to=tmp_path / "mine")
    assert exported_step(to) == 3
    for expected, place in zip(trained, model_folders(to, members), strict=True):
        loaded = AutoModelForSequenceClassification.from_pretrained(place)
        assert loaded.config.num_labels == 1
        assert reads_chat(loaded.config.to_dict()) is (members == 1)
        found = dict(loaded.named_parameters())
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], weight) for name, weight in expected.items())
