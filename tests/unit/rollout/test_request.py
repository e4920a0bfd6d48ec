import pytest

from ray_rl.rollout.request import request_seed


@pytest.mark.parametrize(
    ("where", "seed"),
    [
        ({"run_seed": 0, "step": 0, "index": 0, "prompt_id": "addition/17"}, 1_749_716_482),
        ({"run_seed": 1, "step": 0, "index": 0, "prompt_id": "addition/17"}, 547_468_936),
        ({"run_seed": 0, "step": 12, "index": 3, "prompt_id": "train.jsonl:42"}, 1_535_135_075),
    ],
)
def test_a_seed_stays_what_it_was_in_every_version(where, seed):
    assert request_seed(**where) == seed


def test_seeds_fit_what_engines_take_and_differ_where_anything_differs():
    seeds = {
        request_seed(run_seed=run_seed, step=step, index=index, prompt_id=prompt_id)
        for run_seed in range(3)
        for step in range(10)
        for index in range(10)
        for prompt_id in ("addition/1", "addition/2")
    }
    assert len(seeds) == 3 * 10 * 10 * 2
    assert all(0 <= seed < 2**31 for seed in seeds)
