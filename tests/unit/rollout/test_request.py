import numpy as np
import pytest

from ray_rl.rollout.request import SampleRequest, Sampling, continuation, joined, sampling_seed
from tests.make import completion


@pytest.mark.parametrize(
    ("where", "seed"),
    [
        ({"run_seed": 0, "step": 0, "index": 0, "prompt_id": "addition/17"}, 1_749_716_482),
        ({"run_seed": 1, "step": 0, "index": 0, "prompt_id": "addition/17"}, 547_468_936),
        ({"run_seed": 0, "step": 12, "index": 3, "prompt_id": "train.jsonl:42"}, 1_535_135_075),
    ],
)
def test_a_seed_stays_what_it_was_in_every_version(where, seed):
    assert sampling_seed(**where) == seed


def test_seeds_fit_what_engines_take_and_differ_where_anything_differs():
    seeds = {
        sampling_seed(run_seed=run_seed, step=step, index=index, prompt_id=prompt_id)
        for run_seed in range(3)
        for step in range(10)
        for index in range(10)
        for prompt_id in ("addition/1", "addition/2")
    }
    assert len(seeds) == 3 * 10 * 10 * 2
    assert all(0 <= seed < 2**31 for seed in seeds)


def test_the_first_turns_of_a_group_have_seeds_in_a_row_and_later_turns_streams_of_their_own():
    where = {"run_seed": 0, "step": 0, "index": 0, "prompt_id": "addition/17"}
    assert [sampling_seed(**where, sample=sample) for sample in range(3)] == [1_749_716_482 + g for g in range(3)]
    seeds = {sampling_seed(**where, sample=sample, turn=turn) for sample in range(8) for turn in range(8)}
    assert len(seeds) == 64
    assert sampling_seed(**where, sample=1, turn=2) == 281_186_348


def test_the_rest_of_a_completion_is_asked_for_behind_what_it_had_with_a_stream_of_its_own():
    whole = SampleRequest("3/1", (5, 6), 4, Sampling(max_tokens=10, seed=100, temperature=0.7, stop=("e",)))
    rest = continuation(whole, sample=2, cut=1, sampled=[7, 8])
    assert (rest.id, rest.token_ids, rest.samples) == ("3/1/2/1", (5, 6, 7, 8), 1)
    assert (rest.sampling.max_tokens, rest.sampling.temperature, rest.sampling.stop) == (8, 0.7, ("e",))
    others = [continuation(whole, sample=sample, cut=cut, sampled=[7, 8]) for sample in range(4) for cut in (1, 2)]
    assert len({other.sampling.seed for other in others} | {100 + sample for sample in range(4)}) == 8 + 4
    assert len({other.id for other in others} | {whole.id}) == 8 + 1


def part(tokens, version, finish_reason):
    return completion(
        tokens,
        "".join(map(str, tokens)),
        finish_reason=finish_reason,
        versions=version,
        logprobs=[-0.5 * token for token in tokens],
    )


def test_parts_are_one_completion_that_ends_as_the_last():
    one = joined(joined(part([7, 8], 2, "abort"), part([], 3, "abort")), part([9], 4, "stop"))
    assert one.token_ids.tolist() == [7, 8, 9]
    assert one.logprobs.tolist() == [-3.5, -4.0, -4.5]
    assert one.versions.tolist() == [2, 2, 4]
    assert (one.token_ids.dtype, one.logprobs.dtype, one.versions.dtype) == (np.int32, np.float32, np.int32)
    assert one.finish_reason == "stop"
    assert one.text == "", "the tokens of all parts are decoded together"
