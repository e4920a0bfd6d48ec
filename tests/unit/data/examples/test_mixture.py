import json

import pytest

from ray_rl.config.data import Mixture
from ray_rl.data.examples.load import Examples, load_examples
from ray_rl.errors import DataError


@pytest.fixture(scope="module")
def small(bytes_tokenizer):
    return bytes_tokenizer()


@pytest.fixture
def mixed(small, tmp_path, monkeypatch):
    """Loads a mixture of two files with 40 pairs each, under the settings and weights that are given."""
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        rows = [{"prompt": f"{name} {row}", "chosen": str(row), "rejected": "no"} for row in range(40)]
        (tmp_path / name / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))

    def load(*weights: float, folders: str = "ab", **settings: object) -> Examples:
        parts = [
            {"weight": weight, "source": {"kind": "jsonl", "path": f"{name}/train.jsonl"}}
            for name, weight in zip(folders, weights, strict=True)
        ]
        data = Mixture.model_validate({"parts": parts, **settings})
        return load_examples(data, wanted="comparison", tokenizer=small, note=print)

    return load


def test_a_weight_is_how_often_an_example_occurs_in_an_epoch(mixed):
    found = mixed(2.0, 0.25)
    of_a = [example.id for example in found.train if example.prompt.startswith("a")]
    of_b = [example.id for example in found.train if example.prompt.startswith("b")]
    assert sorted(of_a) == sorted(f"0/train.jsonl:{row}" for row in range(1, 41) for _ in range(2))
    assert len(of_b) == len(set(of_b)) and 4 <= len(of_b) <= 16
    assert "weight 2: 80 examples in an epoch" in found.lines
    assert f"weight 0.25: {len(of_b)} examples in an epoch" in found.lines
    more = {example.id for example in mixed(2.0, 0.5).train}
    assert set(of_b) < more


def test_examples_of_two_files_with_the_same_name_have_different_ids_and_digests(mixed):
    found = mixed(1.0, 1.0)
    assert len({example.id for example in found.train}) == 80
    assert {name for name in found.digests if name.endswith("train.jsonl")} == {"0/train.jsonl", "1/train.jsonl"}
    assert found.digests["the list of examples"] != mixed(1.0, 2.0).digests["the list of examples"]


def test_the_held_out_share_is_that_of_the_whole_and_has_no_weights(mixed):
    once, often = mixed(1.0, 1.0, held_out=0.2), mixed(5.0, 0.5, held_out=0.2)
    assert [example.id for example in once.held_out] == [example.id for example in often.held_out]
    assert {example.id[0] for example in once.held_out} == {"0", "1"}
    assert len(once.train) + len(once.held_out) == 80


def test_weights_that_leave_nothing_are_refused(mixed):
    with pytest.raises(DataError, match=r"data.parts: the weights leave no example to train on; raise one of them"):
        mixed(1e-9, 1e-9)


def test_an_example_of_an_earlier_part_is_left_out_of_the_others(mixed):
    with pytest.raises(
        DataError, match=r"a/train.jsonl: none of 40 rows can be used: the same as an earlier one \(40\)"
    ):
        mixed(1.0, 1.0, folders="aa", deduplicate=True)
    assert len(mixed(1.0, 1.0, folders="aa").train) == 80
