"""The losses of preferences, with the settings of the configuration."""

from dataclasses import asdict

import pytest

from ray_rl.algorithms import preference
from ray_rl.config import offline
from ray_rl.training.configured import kto_of, pair_loss_of

LIKELIHOOD = {"coefficient": 0.3, "over": "pair"}


@pytest.mark.parametrize(
    ("algorithm", "loss"),
    [
        (
            offline.Dpo(beta=0.3, label_smoothing=0.2, smoothing="robust", reference_free=True, likelihood=LIKELIHOOD),
            preference.dpo_loss,
        ),
        (offline.Ipo(beta=0.3, over="sum"), preference.ipo_loss),
        (offline.Orpo(beta=0.3, over="pair"), preference.orpo_loss),
        (offline.Orpo(beta=0.3, over="token"), preference.orpo_loss),
        (offline.SimPo(beta=0.3, margin=0.7, likelihood=LIKELIHOOD), preference.simpo_loss),
        (offline.SimPo(likelihood=None), preference.simpo_loss),
    ],
)
def test_a_loss_of_pairs_has_every_setting_of_its_algorithm(algorithm, loss):
    made = pair_loss_of(algorithm)
    (settings,) = made.args
    assert made.func is loss
    assert asdict(settings) == algorithm.model_dump(exclude={"kind", "batch_size"})


def test_kto_has_every_setting_of_its_algorithm():
    algorithm = offline.Kto(beta=0.3, desirable_weight=1.5, undesirable_weight=0.5)
    assert asdict(kto_of(algorithm)) == algorithm.model_dump(exclude={"kind", "batch_size"})
