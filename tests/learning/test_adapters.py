"""Adapters learn a preference and a reward model as well as all weights do, from the same pairs in the same order.

They train at ten times the learning rate: the default ratio, whose source is in docs/lora.md.
"""

import numpy as np
import pytest
from numpy.typing import NDArray

from ray_rl.config.adapter import RATE_RATIO
from tests.learning import test_preferences, test_reward_models
from tests.learning.rules import Rule
from tests.learning.runs import SEEDS
from tests.learning.tables import bootstrap, printed, share

pytestmark = pytest.mark.timeout(7200)
RATES = {"dpo": 1e-5, "reward_model": 3e-5}
"""Those of all weights, in the runs of the other modules."""


def adapters(kind: str) -> tuple[str, str]:
    """What differs in the run with adapters."""
    return "model.adapter={kind: lora, rank: 32}", f"train.learning_rate={RATES[kind] * RATE_RATIO:g}"


def preferred(seed: int, *changes: str) -> NDArray[np.float64]:
    """The margins of the mean log-probability of a token, of held-out pairs after DPO."""
    _, last = test_preferences.after("dpo", seed, *changes)
    chosen_J, rejected_J = (last.sums_JS / last.tokens_JS).T
    return chosen_J - rejected_J


def scored(rule: Rule):
    """The margins of the scores of held-out pairs, of a reward model."""
    return lambda seed, *changes: test_reward_models.measured(rule, seed, *changes)


RUNS = {
    "DPO, `order`": ("dpo", preferred),
    "reward model, `order`": ("reward_model", scored("order")),
    "reward model, `correct`": ("reward_model", scored("correct")),
}


@pytest.fixture(scope="module")
def table():
    yield from printed(
        f"Accuracy on held-out pairs with adapters of rank 32 and with all weights, {len(SEEDS)} seed(s)",
        *("run and rule", "held-out pairs", "all weights (Wilson)", "adapters (Wilson)"),
        "adapters less all weights (bootstrap over pairs)",
    )


def mean(values_J: NDArray[np.float64]) -> float:
    return float(values_J.mean())


@pytest.mark.parametrize("name", RUNS)
def test_adapters_are_as_good_as_all_weights_within_noise(name, table):
    kind, margins = RUNS[name]
    all_weights_J = np.concatenate([margins(seed) for seed in SEEDS]) > 0
    adapters_J = np.concatenate([margins(seed, *adapters(kind)) for seed in SEEDS]) > 0
    differences_J = adapters_J.astype(float) - all_weights_J
    low, high = bootstrap(mean, differences_J)
    between = f"{differences_J.mean():+.3f} [{low:+.3f}, {high:+.3f}]"
    table.append((name, str(len(adapters_J)), share(all_weights_J), share(adapters_J), between))
    assert high >= 0
    if "order" in name:
        assert adapters_J.mean() > 0.9  # the model learned the rule, and does not only equal one that did not
