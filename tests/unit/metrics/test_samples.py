from ray_rl.config import RunConfig
from ray_rl.metrics.samples import answer_columns, first_sample
from ray_rl.types import Turn
from tests import make


def test_the_reference_answer_is_of_the_column_that_a_reward_compares_with(make_config, make_group):
    config = RunConfig.model_validate(
        make_config().model_dump()
        | {"rewards": [{"kind": "length", "target": 3}, {"kind": "number", "column": "gold"}]}
    )
    columns = answer_columns(config.rewards)
    assert columns[0] == "gold"
    sample = first_sample(make_group([1.0], columns={"answer": "no", "gold": 0}), columns)
    assert (sample.answer, sample.reward, sample.parts) == ("0", 1.0, {"number": 1.0})


def test_the_answer_of_another_systems_row_is_found_inside_its_columns(make_group):
    columns = {"reward_model": {"style": "rule", "ground_truth": "42"}, "data_source": "gsm8k"}
    assert first_sample(make_group([1.0], columns=columns), ("answer", "reward_model.ground_truth")).answer == "42"
    assert first_sample(make_group([1.0], columns=columns), ("answer", "data_source.inner.most")).answer is None
    assert first_sample(make_group([1.0], columns={"answer": None, "label": "b"}), ("answer", "label")).answer == "b"


def test_the_reward_of_an_episode_is_that_of_its_turns_too():
    episode = make.rollout(Turn((), make.completion(2, "a"), 0.25), reward=0.5)
    assert first_sample(make.group(episode), ("answer",)).reward == 0.75
