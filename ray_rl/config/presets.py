"""The named algorithms, as what they set. Everything else keeps the default of its field."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

Preset = Literal[
    "ppo",
    "grpo",
    "dr_grpo",
    "dapo",
    "rloo",
    "reinforce_plus_plus",
    "reinforce_plus_plus_baseline",
    "gspo",
    "cispo",
    "sapo",
    "gpg",
]

PRESETS: Mapping[str, Mapping[str, Any]] = {
    # arXiv:1707.06347 as for language models, arXiv:2203.02155: one completion a prompt, KL in the reward.
    "ppo": {
        "kind": "ppo",
        "group_size": 1,
        "advantage": {"kind": "gae", "gamma": 1.0, "lam": 0.95},
        "kl": {"coefficient": 0.05, "place": "reward", "estimator": "k1"},
        "update_epochs": 4,
    },
    # arXiv:2402.03300, section 4.1 and equation 3: mean over sequences, KL in the loss.
    "grpo": {
        "advantage": {"kind": "group", "divide_by_std": True},
        "reduction": "sequence_mean",
        "kl": {"coefficient": 0.04, "place": "loss", "estimator": "k3"},
    },
    # arXiv:2503.20783, section 3.2: neither the standard deviation nor the length divides; no KL.
    "dr_grpo": {"advantage": {"kind": "group", "divide_by_std": False}, "reduction": "constant"},
    # arXiv:2503.14476, section 3; the buffer of the soft punishment is 4096 of 20480 tokens there.
    "dapo": {
        "advantage": {"kind": "group", "divide_by_std": True},
        "clip": [0.2, 0.28],
        "reduction": "token_mean",
        "dynamic_sampling": {},
        "shaping": {"overlong_share": 0.2},
    },
    # arXiv:2402.14740: KL in the reward of the sequence; as in TRL, a clipped ratio if there are several updates.
    "rloo": {
        "advantage": {"kind": "leave_one_out"},
        "reduction": "sequence_mean",
        "kl": {"coefficient": 0.05, "place": "reward", "estimator": "k1"},
    },
    # arXiv:2501.03262: KL in the reward of each token, one completion a prompt.
    "reinforce_plus_plus": {
        "group_size": 1,
        "advantage": {"kind": "reinforce_plus_plus"},
        "kl": {"coefficient": 0.01, "place": "reward", "estimator": "k1"},
    },
    # The same, with the group's mean as baseline and KL in the loss.
    "reinforce_plus_plus_baseline": {
        "advantage": {"kind": "reinforce_plus_plus_baseline"},
        "kl": {"coefficient": 0.01, "place": "loss", "estimator": "k2"},
    },
    # arXiv:2507.18071, section 5.1.
    "gspo": {
        "advantage": {"kind": "group", "divide_by_std": True},
        "loss": {"kind": "gspo"},
        "clip": [3e-4, 4e-4],
        "reduction": "sequence_mean",
    },
    # arXiv:2506.13585, section 3.1: no lower bound in effect.
    "cispo": {
        "advantage": {"kind": "group", "divide_by_std": True},
        "loss": {"kind": "cispo"},
        "clip": [1.0, 4.0],
        "reduction": "token_mean",
    },
    # arXiv:2511.20347.
    "sapo": {
        "advantage": {"kind": "group", "divide_by_std": True},
        "loss": {"kind": "sapo"},
        "reduction": "sequence_mean",
    },
    # arXiv:2504.02546.
    "gpg": {"advantage": {"kind": "gpg"}, "loss": {"kind": "policy_gradient"}, "reduction": "token_mean"},
}


def filled(given: Mapping[str, Any], preset: Mapping[str, Any]) -> dict[str, Any]:
    """What was given, over the preset: key by key, except that another `kind` replaces its whole mapping."""
    result = {**preset, **given}
    for key, below in preset.items():
        above = given.get(key)
        if isinstance(below, Mapping) and isinstance(above, Mapping):
            changes_kind = "kind" in above and above["kind"] != below.get("kind", above["kind"])
            result[key] = dict(above) if changes_kind else filled(above, below)
    return result
