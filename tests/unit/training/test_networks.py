"""An ensemble of reward models, as it is built from a language model."""

import torch

from ray_rl.training.networks import ScoreNetwork
from tests.unit.models.tiny import tiny_llama


def test_each_member_of_an_ensemble_has_its_own_head_and_the_same_frozen_layers(tmp_path):
    tiny_llama().save_pretrained(tmp_path)
    network = ScoreNetwork(
        folder=str(tmp_path),
        scored_at="end",
        members=2,
        head_seed=5,
        dtype="float32",
        trust_remote_code=False,
        gradient_checkpointing=True,
        frozen_layers=1,
    )
    model = network.build("eager")
    assert list(model.exported) == ["member_0.", "member_1."]
    first, second = model.exported.values()
    assert not torch.equal(first.score.weight, second.score.weight)
    for member in (first, second):
        assert member.is_gradient_checkpointing
        assert member.score.weight.requires_grad
        assert [layer.mlp.up_proj.weight.requires_grad for layer in member.model.layers] == [False, True]
    scores_MN = torch.tensor([[1.0, 2.0], [3.0, 6.0]])
    assert network.score(lambda inputs: scores_MN, None).tolist() == [2.0, 4.0]
