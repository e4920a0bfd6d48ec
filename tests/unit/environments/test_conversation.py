"""The prompt of an episode."""

from ray_rl.environments.conversation import joined, with_described
from ray_rl.types import Message


def test_the_first_message_continues_the_prompt_of_the_user():
    rules = Message("user", "rules")
    assert joined((), [rules]) == (rules,)
    assert joined((Message("system", "play"), Message("user", "")), [rules]) == (Message("system", "play"), rules)
    assert joined((Message("user", "a"),), [rules, rules]) == (Message("user", "a\n\nrules"), rules)
    assert joined((Message("assistant", "a"),), [rules]) == (Message("assistant", "a"), rules)


def test_schemas_are_described_behind_the_system_message_or_in_one_of_their_own():
    question, schema = Message("user", "?"), {"type": "function", "function": {"name": "add"}}
    (own, asked) = with_described([question], [schema])
    assert (own.role, asked) == ("system", question)
    assert '{"type": "function", "function": {"name": "add"}}' in own.content
    (joint, _) = with_described([Message("system", "be brief"), question], [schema])
    assert joint.content == f"be brief\n\n{own.content}"
