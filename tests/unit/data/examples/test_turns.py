"""What is trained on where a chat template has generation markers, against transformers' masks by the same markers."""

from __future__ import annotations

from importlib import util
from pathlib import Path

import numpy as np
import pytest
from tokenizers import processors

from ray_rl.data.chat import ChatTokenizer
from ray_rl.data.formats.record import Comparison, Demonstration, Judged, Unusable
from ray_rl.data.marked import generated_tokens
from ray_rl.errors import DataError
from ray_rl.types import Message
from tests.unit.data.examples.tokenizing import answered, example_of, parts, prompt_text, said, trained

TEMPLATES = Path(util.find_spec("trl").origin).parent / "chat_templates"
TURNS = ("6*7?", "42", "Sure?", "Yes.")
DEMONSTRATION = Demonstration(said(TURNS[0]), answered(*TURNS[1:]))
THOUGHT = "<think>\n{}\n</think>\n\n{}"
THOUGHTS = Demonstration(said("6*7?"), answered(THOUGHT.format("7*6", "42"), "Sure?", THOUGHT.format("hm", "Yes.")))


def of_transformers(tokenizer: ChatTokenizer, record: Demonstration) -> list[str]:
    """The texts of the tokens in transformers' assistant mask."""
    from transformers import PreTrainedTokenizerFast

    model = tokenizer.model_tokenizer
    fast = PreTrainedTokenizerFast(tokenizer_file=str(model.folder / "tokenizer.json"), **model.special_tokens)
    found = fast.apply_chat_template(
        [{"role": each.role, "content": each.content} for each in (*record.prompt, *record.completion)],
        chat_template=tokenizer.model_tokenizer.templates["default"],
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    token_ids, mask = np.array(found["input_ids"]), np.array(found["assistant_masks"])
    runs = np.split(np.arange(len(mask)), np.flatnonzero(np.diff(mask)) + 1)
    return [model.decode(token_ids[run], skip_special_tokens=False) for run in runs if mask[run[0]]]


def both(*pieces: str) -> list[str]:
    """The texts of the two answers, each in the pieces around it."""
    before, after = pieces
    return [f"{before}{text}{after}" for text in ("42", "Yes.")]


EMPTY = "<think>\n\n</think>\n\n"


@pytest.mark.parametrize(
    ("name", "marked", "expected"),
    [
        ("llama3_training", both("", "<|eot_id|>"), both("", "<|eot_id|>")),
        # The line end behind the end of a turn is the template's: an engine stops before it.
        ("gemma_training", both("", "<end_of_turn>\n"), both("", "<end_of_turn>")),
        ("qwen3_training", both(EMPTY, "<|im_end|>\n"), both(EMPTY, "<|im_end|>")),
        ("phi3_training", ["42<|end|>\n", "Yes.<|end|>\n<|im_end|>"], both("", "<|end|>")),
        # The engine's prompt ends with a line end, or with the beginning of a thought, which these templates mark too.
        ("qwen2_5_training", both("\n", "<|im_end|>\n"), both("", "<|im_end|>")),
        ("qwen3_6_training", both(EMPTY, "<|im_end|>\n"), both("\n</think>\n\n", "<|im_end|>")),
        ("qwen3_5_nothink_training", both(EMPTY, "<|im_end|>\n"), both("", "<|im_end|>")),
    ],
)
def test_marked_tokens_are_trained_on_that_an_engine_would_sample(bytes_tokenizer, name, marked, expected):
    tokenizer = bytes_tokenizer((TEMPLATES / f"{name}.jinja").read_text())
    assert tokenizer.has_markers
    assert of_transformers(tokenizer, DEMONSTRATION) == marked
    example = example_of(tokenizer, DEMONSTRATION)
    assert trained(tokenizer, example) == expected
    # Before each trained turn there is exactly what an engine gets in such a conversation.
    whole = (*example.prompt_ids, *example.answers[0].token_ids)
    for turns in (TURNS[:1], TURNS[:3]):
        prompt_ids = tokenizer.encode(said(*turns), chat=True)
        assert whole[: len(prompt_ids)] == prompt_ids
    assert trained(tokenizer, example_of(tokenizer, DEMONSTRATION, train_on="last_turn")) == expected[1:]
    pair = example_of(tokenizer, Comparison(DEMONSTRATION.prompt, DEMONSTRATION.completion, answered("41")))
    assert trained(tokenizer, pair) == expected


def test_thoughts_are_trained_on_where_the_template_marks_and_keeps_them(bytes_tokenizer):
    tokenizer = bytes_tokenizer((TEMPLATES / "qwen3_training.jinja").read_text())
    expected = [THOUGHT.format("7*6", "42<|im_end|>"), THOUGHT.format("hm", "Yes.<|im_end|>")]
    assert of_transformers(tokenizer, THOUGHTS) == [text + "\n" for text in expected]
    assert trained(tokenizer, example_of(tokenizer, THOUGHTS)) == expected


def test_an_earlier_turn_that_ends_otherwise_than_the_engine_does_is_refused(bytes_tokenizer):
    """gpt-oss ends a sampled answer with <|return|>, which its template replaces as soon as a turn follows."""
    tokenizer = bytes_tokenizer((TEMPLATES / "gptoss_training.jinja").read_text())
    start = "<|start|>assistant<|channel|>final<|message|>"
    assert of_transformers(tokenizer, DEMONSTRATION) == [f"{start}42<|end|>", f"{start}Yes.<|return|>"]
    with pytest.raises(DataError, match=r"^t.jsonl:1: the chat template shows an earlier turn of the assistant, '42'"):
        example_of(tokenizer, DEMONSTRATION)
    example = example_of(tokenizer, DEMONSTRATION, train_on="last_turn")
    assert trained(tokenizer, example) == ["<|channel|>final<|message|>Yes.<|return|>"]


def test_marks_that_lose_a_thought_do_not_replace_the_answer(bytes_tokenizer):
    """DeepSeek-V3's template drops every thought, though its generation prompt begins one."""
    tokenizer = bytes_tokenizer((TEMPLATES / "deepseekv3_training.jinja").read_text())
    one = Demonstration(THOUGHTS.prompt, THOUGHTS.completion[:1])
    assert of_transformers(tokenizer, one)[0].startswith("<\uff5cAssistant\uff5c>\n\n42<")
    example = example_of(tokenizer, one)
    assert prompt_text(tokenizer, example).endswith("<think>\n")
    assert trained(tokenizer, example)[0].startswith("7*6\n</think>\n\n42<")
    with pytest.raises(DataError, match="the chat template shows an earlier turn"):
        example_of(tokenizer, THOUGHTS)


def chatml(marked: str, *, assistant: str = "m.role == 'assistant'", prompt: str = "") -> str:
    """ChatML in which an assistant's turn that fulfils a condition is written by `marked`."""
    return (
        "{% for m in messages %}{% set text = m.content %}<|im_start|>{{ m.role }}\n"
        "{% if " + assistant + " %}" + marked + "{% else %}"
        "{{ text.split('</think>')[-1].lstrip('\n') if m.role == 'assistant' else text }}<|im_end|>\n"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n" + prompt + "{% endif %}"
    )


def test_the_end_of_a_turn_is_trained_on_where_the_markers_leave_it_out(bytes_tokenizer):
    """A model that never learns the end does not stop."""
    tokenizer = bytes_tokenizer(chatml("{% generation %}{{ text }}{% endgeneration %}<|im_end|>\n"))
    assert of_transformers(tokenizer, DEMONSTRATION) == ["42", "Yes."]
    assert trained(tokenizer, example_of(tokenizer, DEMONSTRATION)) == ["42<|im_end|>", "Yes.<|im_end|>"]


def test_space_between_a_marked_text_and_the_end_is_sampled_to_reach_the_end(bytes_tokenizer):
    tokenizer = bytes_tokenizer(chatml("{% generation %}{{ text }}{% endgeneration %}{{ '\n' }}<|im_end|>"))
    assert trained(tokenizer, example_of(tokenizer, DEMONSTRATION)) == ["42\n<|im_end|>", "Yes.\n<|im_end|>"]


def test_an_end_behind_other_text_than_the_marked_one_is_not_trained_on(bytes_tokenizer):
    tokenizer = bytes_tokenizer(chatml("{% generation %}{{ text }}{% endgeneration %}.<s><|im_end|>"))
    assert trained(tokenizer, example_of(tokenizer, DEMONSTRATION)) == ["42", "Yes."]
    tokenizer = bytes_tokenizer(chatml("{% generation %}{{ text }}.{% endgeneration %}<s><|im_end|>"))
    assert trained(tokenizer, example_of(tokenizer, DEMONSTRATION)) == ["42.", "Yes.."]


def test_parts_of_an_answer_without_marks_are_context(bytes_tokenizer):
    """This template marks answers and not the thoughts before them."""
    parted = (
        "{{ text.split('</think>')[0] }}</think>{% generation %}{{ text.split('</think>')[-1] }}"
        "{% endgeneration %}<|im_end|>\n"
    )
    tokenizer = bytes_tokenizer(chatml(parted))
    assert parts(tokenizer, example_of(tokenizer, THOUGHTS)) == [
        ("<think>\n7*6\n</think>", False),
        ("\n\n42<|im_end|>", True),
        ("\n<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\n<think>\nhm\n</think>", False),
        ("\n\nYes.<|im_end|>", True),
    ]


def test_the_end_behind_a_text_that_is_not_marked_is_not_trained_on(bytes_tokenizer):
    parted = (
        "{% generation %}{{ text.split('</think>')[0] }}</think>{% endgeneration %}{{ text.split('</think>')[-1] }}"
        "<|im_end|>\n"
    )
    tokenizer = bytes_tokenizer(chatml(parted))
    assert trained(tokenizer, example_of(tokenizer, THOUGHTS)) == ["<think>\n7*6\n</think>", "<think>\nhm\n</think>"]


LAST = "m.role == 'assistant' and loop.last"
DROPPED = "text.split('</think>')[-1].lstrip('\n')"
MARKED = "{% generation %}{{ text }}<|im_end|>\n{% endgeneration %}"


@pytest.mark.parametrize("prompt", ["", "{{ '<s>' if messages | length == 1 }}"], ids=["thoughts", "prompts"])
def test_turns_without_marks_may_be_rewritten(bytes_tokenizer, prompt):
    """This template drops earlier thoughts, and marks the last answer alone; or it changes earlier prompts too."""
    tokenizer = bytes_tokenizer(chatml(MARKED, assistant=LAST, prompt=prompt))
    example = example_of(tokenizer, THOUGHTS)
    assert trained(tokenizer, example) == [THOUGHT.format("hm", "Yes.<|im_end|>")]
    whole = (*example.prompt_ids, *example.answers[0].token_ids)
    context = tokenizer.encode((*THOUGHTS.prompt, *THOUGHTS.completion[:2]), chat=True)
    assert whole[: len(context)] == context
    assert prompt_text(tokenizer, example).endswith("<|im_start|>assistant\n")
    # The same tokens as with the last turn alone.
    alone = example_of(tokenizer, THOUGHTS, train_on="last_turn")
    assert whole == (*alone.prompt_ids, *alone.answers[0].token_ids)


def test_an_earlier_turn_without_marks_is_context_of_marked_ones(bytes_tokenizer):
    tokenizer = bytes_tokenizer(chatml(MARKED, assistant="m.role == 'assistant' and loop.index > 2"))
    turns = answered(THOUGHT.format("7*6", "42"), "Sure?", "Yes.", "Really?", "Really.")
    record = Demonstration(said("6*7?"), turns)
    assert of_transformers(tokenizer, record) == ["Yes.<|im_end|>\n", "Really.<|im_end|>\n"]
    assert trained(tokenizer, example_of(tokenizer, record)) == ["Yes.<|im_end|>", "Really.<|im_end|>"]


def test_earlier_turns_keep_their_marks_where_the_last_one_is_trained_on_as_it_is(bytes_tokenizer):
    """This template drops every thought, and marks what is left."""
    tokenizer = bytes_tokenizer(chatml(MARKED.replace("text", DROPPED)))
    turns = answered("Yes.", "Why?", THOUGHT.format("hm", "So."))
    example = example_of(tokenizer, Demonstration(said("6*7?"), turns))
    assert trained(tokenizer, example) == ["Yes.<|im_end|>", THOUGHT.format("hm", "So.<|im_end|>")]


def test_a_last_answer_without_marks_is_context_also_where_it_is_not_shown_as_it_is_sampled(bytes_tokenizer):
    """This template drops every thought, and marks answers that had none."""
    dropping = chatml(MARKED, assistant="m.role == 'assistant' and '</think>' not in text")
    tokenizer = bytes_tokenizer(dropping)
    turns = answered(THOUGHT.format("7*6", "42"), "Sure?", "Yes.", "Why?", THOUGHT.format("hm", "So."))
    example = example_of(tokenizer, Demonstration(said("6*7?"), turns))
    assert trained(tokenizer, example) == ["Yes.<|im_end|>"]
    for record in (THOUGHTS, Judged("6*7?", THOUGHT.format("7*6", "42"), True)):
        with pytest.raises(Unusable, match="no token to train on"):
            example_of(tokenizer, record)


def test_an_answer_of_which_an_unknown_part_is_marked_is_refused(bytes_tokenizer):
    """This template drops every thought, and does not mark the first line of what is left."""
    first, rest = f"{{{{ ({DROPPED}).split('\n')[0] }}}}", f"{{{{ '\n' ~ ({DROPPED}).split('\n')[1] }}}}"
    tokenizer = bytes_tokenizer(chatml(f"{first}{{% generation %}}{rest}<|im_end|>\n{{% endgeneration %}}"))
    assert trained(tokenizer, example_of(tokenizer, Judged("6*7?", "So:\n42", True))) == ["\n42<|im_end|>"]
    with pytest.raises(DataError, match="the chat template does not mark a part of the answer, 'So:', and does not"):
        example_of(tokenizer, Judged("6*7?", THOUGHT.format("7*6", "So:\n42"), True))
    # What the template writes before the answer is no part of it.
    opened = f"<think></think>{{% generation %}}{{{{ {DROPPED} }}}}<|im_end|>\n{{% endgeneration %}}"
    tokenizer = bytes_tokenizer(chatml(opened))
    answer = THOUGHT.format("7*6", "42")
    assert trained(tokenizer, example_of(tokenizer, Judged("6*7?", answer, True))) == [f"{answer}<|im_end|>"]


def test_an_empty_thought_that_the_template_marks_is_trained_on_in_the_last_turn(bytes_tokenizer):
    """As in Qwen3's template with markers: only the last answer has it, so that an earlier one is rewritten."""
    thought = "{% generation %}{{ '<think>\n\n</think>\n\n' if loop.last }}{{ text }}<|im_end|>\n{% endgeneration %}"
    tokenizer = bytes_tokenizer(chatml(thought))
    example = example_of(tokenizer, DEMONSTRATION, train_on="last_turn")
    assert trained(tokenizer, example) == [EMPTY + "Yes.<|im_end|>"]
    with pytest.raises(DataError, match="shows an earlier turn of the assistant, '42'"):
        example_of(tokenizer, DEMONSTRATION)


def test_a_marked_turn_that_is_rewritten_is_refused_or_left_out(bytes_tokenizer):
    """This template marks every turn, and drops earlier thoughts, so that it would teach answers without them."""
    dropping = "{% set shown = text if loop.last else text.split('</think>')[-1].lstrip('\n') %}"
    tokenizer = bytes_tokenizer(chatml(dropping + MARKED.replace("text", "shown")))
    assert of_transformers(tokenizer, THOUGHTS)[0] == "42<|im_end|>\n"
    with pytest.raises(DataError, match=r"shows an earlier turn .*train_on: last_turn"):
        example_of(tokenizer, THOUGHTS)
    with pytest.raises(DataError, match="shows an earlier turn"):
        example_of(tokenizer, Comparison(THOUGHTS.prompt, THOUGHTS.completion, answered("41")))
    expected = [THOUGHT.format("hm", "Yes.<|im_end|>")]
    assert trained(tokenizer, example_of(tokenizer, THOUGHTS, train_on="last_turn")) == expected
    excluded = Demonstration(THOUGHTS.prompt, THOUGHTS.completion, untrained=frozenset({0}))
    assert trained(tokenizer, example_of(tokenizer, excluded)) == expected
    # Without thoughts, every turn is shown as it is sampled.
    assert trained(tokenizer, example_of(tokenizer, DEMONSTRATION)) == ["42<|im_end|>", "Yes.<|im_end|>"]


def test_answers_of_a_pair_have_one_prompt_which_the_template_may_not_rewrite(bytes_tokenizer):
    tokenizer = bytes_tokenizer(chatml(MARKED, assistant=LAST, prompt="{{ '<s>' if messages | length == 1 }}"))
    with pytest.raises(DataError, match="shows an earlier turn"):
        example_of(tokenizer, Comparison(THOUGHTS.prompt, THOUGHTS.completion, answered("41")))


def test_a_turn_with_weight_0_is_only_context_though_it_is_marked(bytes_tokenizer):
    tokenizer = bytes_tokenizer(chatml(MARKED))
    record = Demonstration(said("a?"), answered("A", "b?", "B", "c?", "C"), untrained=frozenset({2}))
    assert trained(tokenizer, example_of(tokenizer, record)) == ["A<|im_end|>", "C<|im_end|>"]


def test_all_trains_on_tokens_without_marks_too(bytes_tokenizer):
    tokenizer = bytes_tokenizer(chatml(MARKED))
    (answer,) = example_of(tokenizer, DEMONSTRATION, train_on="all").answers
    assert answer.loss_mask.all()


def test_answers_of_which_nothing_is_marked_are_useless(bytes_tokenizer):
    tokenizer = bytes_tokenizer(chatml(MARKED, assistant="m.role == 'tool'"))
    assert tokenizer.has_markers
    for record in (DEMONSTRATION, Judged("6*7?", "42", True)):
        with pytest.raises(Unusable, match="no token to train on"):
            example_of(tokenizer, record)


def test_markers_whose_place_in_the_text_is_not_known_are_refused(bytes_tokenizer):
    """transformers' offsets would then be those of other text."""
    macro = "{% macro turn(text) %}<s>{% generation %}{{ text }}{% endgeneration %}<|im_end|>\n{% endmacro %}"
    tokenizer = bytes_tokenizer(macro + chatml("{{ turn(text) }}"))
    with pytest.raises(DataError, match=r"^t.jsonl:1: .* has its {% generation %} markers inside a macro"):
        example_of(tokenizer, DEMONSTRATION)


def test_a_comment_about_markers_is_none(bytes_tokenizer):
    assert not bytes_tokenizer(chatml("{# {% generation %} #}{{ text }}<|im_end|>\n")).has_markers


def test_an_answer_that_the_engine_would_tokenise_otherwise_is_trained_on_as_it_would_be(bytes_tokenizer):
    """The line ends of the prompt and of the answer are one token in the rendered text, and two for an engine."""
    tokenizer = bytes_tokenizer(chatml(MARKED), merges="\u010a\u010a")
    example = example_of(tokenizer, Demonstration(said("6*7?"), answered("42", "Sure?", "\nYes.")))
    assert trained(tokenizer, example) == ["42<|im_end|>", "\nYes.<|im_end|>"]


def test_tokens_of_a_span_are_found_where_offsets_leave_out_spaces_and_split_characters(bytes_tokenizer):
    """Byte-level tokenizers say that " b" is at 2 to 3 and a space alone nowhere, and that both bytes of an e with an
    accent are at its place; char_to_token of transformers then finds no token for a span that begins with a space."""
    model = bytes_tokenizer(merges="\u0120b").model_tokenizer
    text = "a b \u00e9<|im_end|>"
    model.library.post_processor = processors.ByteLevel(trim_offsets=True)
    encoded = model.library.encode(text)
    assert encoded.offsets == [(0, 1), (2, 3), (4, 4), (4, 5), (4, 5), (5, 15)]
    for span, tokens in (((1, 3), [1]), ((3, 4), [2]), ((3, 5), [2, 3, 4]), ((4, 5), [3, 4]), ((5, 15), [5])):
        assert np.flatnonzero(generated_tokens(model, text, [span])).tolist() == tokens, span


def test_messages_as_parts_are_marked_too(bytes_tokenizer):
    parted = "{% generation %}{{ text[0].text }}<|im_end|>{% endgeneration %}\n"
    template = chatml(parted).replace("else text }}", "else text[0].text }}")
    tokenizer = bytes_tokenizer(template)
    example = example_of(tokenizer, Demonstration((Message("user", "6*7?"),), answered("42")))
    assert trained(tokenizer, example) == ["42<|im_end|>"]
