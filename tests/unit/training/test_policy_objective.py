"""Which rows the policy is trained on."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ray_rl.app.models import policy_parts
from ray_rl.config.loading.load import load_config
from tests.unit.models.tiny import ragged_batch

DEMO = Path(__file__).parents[3] / "configs/grpo_addition_smollm2-135m_cpu.yaml"


@pytest.mark.parametrize(
    ("override", "rows"),
    [
        ("algorithm={kind: dr_grpo}", [1]),
        ("algorithm={kind: dr_grpo, entropy_coefficient: 0.1}", [0, 1]),
        ("algorithm={kind: dr_grpo, loss: {kind: custom, function: 'my_module:surrogate'}}", [0, 1]),
    ],
    ids=["advantages alone", "an entropy bonus", "a user's loss"],
)
def test_a_row_without_an_advantage_is_left_out_where_it_has_no_gradient(monkeypatch, override, rows):
    monkeypatch.setattr("ray_rl.training.custom.import_function", lambda path: lambda *arguments: None)
    objective, _ = policy_parts(load_config(DEMO, [override]), ("folder",))
    batch = ragged_batch((2,), (2, 2))
    batch = replace(batch, advantages_RT=np.where(batch.loss_mask_RT, [[0.0], [1.0]], 0.0).astype(np.float32))
    assert objective.trained(batch, np.arange(2))[0].tolist() == rows
