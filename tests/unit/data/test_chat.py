import pytest

from ray_rl.config.data import Jsonl
from ray_rl.data.chat import ChatTokenizer
from ray_rl.data.source import build_source
from ray_rl.errors import DataError
from ray_rl.types import Message


def test_text_is_one_user_message_with_the_generation_prompt(tokenizer, ids):
    expected = [ids[word] for word in ("<|user|>", "What", "is", "<|end|>", "<|assistant|>")]
    assert tokenizer.encode("What is", chat=True) == tuple(expected)


def test_the_completion_starts_where_the_prompt_ends_even_if_the_user_writes_its_markers(tokenizer, ids):
    """By position: the template's own markers inside the user's text are no boundary."""
    prompt = tokenizer.encode("What <|end|> <|assistant|> is", chat=True)
    assert prompt.count(ids["<|assistant|>"]) == 2
    completion = (ids["a"], ids["<|end|>"])
    whole = prompt + completion
    assert whole[len(prompt) :] == completion
    assert tokenizer.decode(whole[len(prompt) :]) == "a"


def test_without_chat_text_is_fed_as_it_is(tokenizer, ids):
    assert tokenizer.encode("What is", chat=False) == (ids["What"], ids["is"])


def test_decoding_leaves_out_special_tokens(tokenizer, ids):
    assert tokenizer.decode([ids["<|user|>"], ids["What"], ids["<|end|>"]]) == "What"


def test_a_completion_ends_at_the_tokens_of_tokenizer_and_generation_config(tokenizer, ids):
    assert tokenizer.eos_token_ids == (ids["<|end|>"], ids["<s>"])


def test_messages_without_chat_are_refused(tokenizer):
    with pytest.raises(DataError, match=r"data.chat=false feeds text, .* set data.chat: true"):
        tokenizer.encode([Message("user", "What")], chat=False)


def test_a_model_without_a_chat_template_is_refused(tmp_path, write_tokenizer):
    tokenizer = ChatTokenizer(write_tokenizer(tmp_path, chat_template=None))
    with pytest.raises(DataError, match=r"no chat template; use an instruct model, or .* data.chat: false"):
        tokenizer.encode("What", chat=True)


def test_a_torn_tokenizer_is_refused(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(DataError, match="no tokenizer could be loaded"):
        ChatTokenizer(tmp_path)


def test_a_conversation_that_the_template_refuses_is_named_by_its_row(tokenizer, jsonl):
    path = jsonl({"prompt": [{"role": "user", "content": "What"}, {"role": "tool", "content": "42"}]})
    source = build_source(Jsonl(path=path), seed=0, tokenizer=tokenizer)
    with pytest.raises(
        DataError, match=r"^train.jsonl:1: the chat template .* refuses roles user, tool: no tools here"
    ):
        source.take(1)
