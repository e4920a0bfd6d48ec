"""The prompt of an episode."""

from ray_rl.environments.conversation import joined
from ray_rl.types import Message


def test_the_first_message_continues_the_prompt_of_the_user():
    rules = Message("user", "rules")
    assert joined((), [rules]) == (rules,)
    assert joined((Message("system", "play"), Message("user", "")), [rules]) == (Message("system", "play"), rules)
    assert joined((Message("user", "a"),), [rules, rules]) == (Message("user", "a\n\nrules"), rules)
    assert joined((Message("assistant", "a"),), [rules]) == (Message("assistant", "a"), rules)
