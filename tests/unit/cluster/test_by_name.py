import pickle

import pytest

from ray_rl.app import models, models_offline, workers
from ray_rl.cluster import held, roles
from ray_rl.cluster.by_name import ByName
from ray_rl.rewards.model.held import RewardModels
from ray_rl.training.crediting import credited
from ray_rl.training.frozen import FrozenModel
from ray_rl.training.trainer import Trainer


@pytest.mark.parametrize(
    ("named", "original"),
    [
        (roles.Trainer.update, Trainer.update),
        (roles.SavedTrainer.is_saved, held.SavedTrainer.is_saved),
        (roles.ExportedTrainer.export, held.ExportedTrainer.export),
        (roles.Policy.send_weights, held.Policy.send_weights),
        (roles.FrozenModel.scores, FrozenModel.scores),
        (roles.RewardModels.scores, RewardModels.scores),
        (roles.credited, credited),
        (workers.BUILDERS["actor"], models.build_actor),
        (workers.BUILDERS["critic"], models.build_critic),
        (workers.BUILDERS["reference"], models.build_reference),
        (workers.BUILDERS["reward"], models.build_reward_models),
        (workers.OFFLINE_BUILDERS["actor"], models_offline.build_learner),
        (workers.OFFLINE_BUILDERS["reference"], models.build_reference),
    ],
    ids=lambda each: each.__name__,
)
def test_a_worker_gets_what_the_driver_names(named, original):
    assert isinstance(named, ByName)
    assert named.__name__ == original.__name__
    assert pickle.loads(pickle.dumps(named)) is original


def test_what_is_named_can_be_called_here_too():
    assert ByName("math", "sqrt")(9.0) == 3.0
    with pytest.raises(AttributeError):
        ByName("math", "no_such_function")()
