import pytest

from ray_rl.config.loading.nearest import nearest
from ray_rl.config.loading.schema import sections_of
from ray_rl.config.run import RunConfig

KINDS = list(sections_of(RunConfig.model_fields["algorithm"].annotation))


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        *[("gpro", "grpo"), ("gsop", "gspo"), ("dop", "dpo"), ("pdo", "dpo"), ("stf", "sft"), ("orop", "orpo")],
        *[("dappo", "dapo"), ("ppp", "ppo"), ("rlo", "rloo"), ("qqqq", None), ("", None)],
    ],
)
def test_swapped_letters_of_a_kind_are_nearer_than_another_letter(written, meant):
    assert nearest(written, KINDS) == meant


def test_a_word_that_is_less_similar_than_asked_for_is_not_near():
    assert nearest("stepz", ["steps"]) == "steps"
    assert nearest("stepz", ["steps"], similarity=0.9) is None
