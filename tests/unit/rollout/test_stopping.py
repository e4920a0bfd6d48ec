import pytest

from ray_rl.rollout.stopping import ended_by_text, up_to_a_stop
from ray_rl.types import Completion
from tests import make

LETTERS = "abcdefghij"


def spelled(token_ids):
    """Token n is the letter n."""
    return "".join(LETTERS[token] for token in token_ids)


def completion(text: str, finish_reason: str = "length") -> Completion:
    places = range(len(text))
    letters = [LETTERS.index(letter) for letter in text]
    return make.completion(letters, finish_reason=finish_reason, versions=places, logprobs=places)


@pytest.mark.parametrize(
    ("text", "stops", "cut"),
    [
        ("abcd", ["bc"], "abc"),
        ("abcabc", ["bc"], "abc"),
        ("abcd", ["abcd", "b"], "ab"),
        ("abcd", ["x"], "abcd"),
        ("abcd", [], "abcd"),
    ],
)
def test_a_text_ends_where_the_first_stop_is_complete(text, stops, cut):
    assert ended_by_text(text, stops) == cut


def test_a_stop_that_began_before_a_publish_ends_the_completion_at_its_token():
    """vLLM looks for it in each part alone: parts "ab" and "cde" hold "bc" only together."""
    ended = up_to_a_stop(completion("abcde"), ["bc"], spelled)
    assert (spelled(ended.token_ids), ended.finish_reason) == ("abc", "stop")
    assert ended.logprobs.tolist() == [0, 1, 2]
    assert ended.versions.tolist() == [0, 1, 2]


def test_a_completion_without_a_stop_is_left_as_it_is():
    whole = completion("abcde", "abort")
    assert up_to_a_stop(whole, ["x"], spelled) is whole
    assert up_to_a_stop(whole, [], spelled) is whole
