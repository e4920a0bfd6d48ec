"""Whether a chat template can write the turns of an environment."""

import pytest

from ray_rl.app.environments import require_support
from ray_rl.config.environment import CustomEnvironment
from ray_rl.data.history import TurnSupport
from ray_rl.errors import ConfigError


def environment(**settings):
    return CustomEnvironment(function="worlds:World", **settings)


def test_a_template_that_rewrites_turns_is_refused_unless_the_run_keeps_what_was_said():
    thinking = TurnSupport(None, None, "it drops thoughts")
    with pytest.raises(ConfigError, match=r"rewrites earlier turns: it drops thoughts; set environment\.history=keep"):
        require_support(environment(), thinking, model="m")
    require_support(environment(history="keep"), thinking, model="m")


def test_a_template_that_cannot_answer_the_policy_is_refused():
    with pytest.raises(ConfigError, match="cannot write a message behind an answer: it refuses them"):
        require_support(environment(history="keep"), TurnSupport("it refuses them", None, None), model="m")
    require_support(environment(), TurnSupport(None, "it has no tools", None), model="m")
