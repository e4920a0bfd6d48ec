from __future__ import annotations

from importlib import util
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models

from ray_rl.data.chat import ChatTokenizer
from ray_rl.data.examples.tokenize import ExampleTokenizer
from ray_rl.data.formats.record import Comparison, Demonstration, Judged, Steps, Unusable
from ray_rl.errors import ConfigError, DataError
from ray_rl.types import Message
from tests.unit.data.examples.conftest import LLAMA3, QWEN3
from tests.unit.data.examples.tokenizing import answered, example_of, parts, prompt_text, said

END = "<|im_end|>"


class TestAnswers:
    def test_the_context_is_what_the_engine_gets_and_no_template_text_follows_the_end(self, bytes_tokenizer):
        """TRL's completion of ChatML ends in the line end after <|im_end|>, and counts it in its sums."""
        tokenizer = bytes_tokenizer()
        example = example_of(tokenizer, Comparison(said("6*7?"), answered("42"), answered("41")))
        assert example.prompt_ids == tokenizer.encode("6*7?", chat=True)
        end = tokenizer.model_tokenizer.vocabulary[END]
        assert [answer.token_ids.tolist() for answer in example.answers] == [
            [*tokenizer.encode("42", chat=False), end],
            [*tokenizer.encode("41", chat=False), end],
        ]
        assert all(answer.loss_mask.all() for answer in example.answers)
        assert prompt_text(tokenizer, example).endswith("<|im_start|>user\n6*7?<|im_end|>\n<|im_start|>assistant\n")

    def test_a_reward_model_reads_whole_conversations_of_the_template(self, bytes_tokenizer):
        """So the judge of a run reads them: to the line end that ChatML writes after <|im_end|>.

        The 4 with which both answers begin is not part of the prompt, which may be cut.
        """
        tokenizer = bytes_tokenizer()
        record = Comparison(said("6*7?"), answered("42"), answered("4 1<|im_end|>"), margin=0.5)
        example = example_of(tokenizer, record, rendered=True)
        prompt = prompt_text(tokenizer, example)
        assert prompt.endswith("<|im_start|>user\n6*7?<|im_end|>\n<|im_start|>assistant\n")
        assert [parts(tokenizer, example, side)[0][0] for side in (0, 1)] == ["42<|im_end|>\n", "4 1<|im_end|>\n"]
        assert example.margin == 0.5
        as_text = Comparison("6*7?", "42", "4 1")
        assert example_of(tokenizer, as_text, rendered=True).digest == example.digest

    def test_the_text_of_a_generation_prompt_that_answers_lack_is_not_in_the_prompt_of_a_reward_model(
        self, bytes_tokenizer
    ):
        template = (
            "{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}42<think>{% endif %}"
        )
        tokenizer = bytes_tokenizer(template)
        example = example_of(tokenizer, Comparison(said("6*7?"), answered("42"), answered("421")), rendered=True)
        # An answer that begins another keeps a token of its own.
        assert prompt_text(tokenizer, example) == "6*7?4"
        assert [parts(tokenizer, example, side)[0][0] for side in (0, 1)] == ["2", "21"]

    def test_plain_text_has_no_template_to_render(self, bytes_tokenizer):
        tokenizer = bytes_tokenizer(None, eos="</s>")
        example = example_of(tokenizer, Comparison("6*7=", "42", "41"), chat=False, rendered=True)
        assert [parts(tokenizer, example, side)[0][0] for side in (0, 1)] == ["42</s>", "41</s>"]

    def test_text_and_messages_give_the_same_tokens(self, bytes_tokenizer):
        tokenizer = bytes_tokenizer()
        of_text = example_of(tokenizer, Judged("6*7?", "42", True))
        of_messages = example_of(tokenizer, Judged(said("6*7?"), answered("42"), True))
        assert of_text.digest == of_messages.digest
        assert of_text.label is True

    def test_plain_text_ends_with_eos_even_if_it_pads_too(self, bytes_tokenizer):
        """SmolLM2 has pad == eos: a mask of all that is not padding would never teach to stop."""
        tokenizer = bytes_tokenizer(None, eos="</s>")
        example = example_of(tokenizer, Demonstration("6*7=", "42"), chat=False)
        assert parts(tokenizer, example) == [("42</s>", True)]
        assert prompt_text(tokenizer, example) == "6*7="

    def test_an_end_that_the_data_already_has_is_not_doubled(self, bytes_tokenizer):
        tokenizer = bytes_tokenizer()
        for text in ("42<|im_end|>", "42<|im_end|>\n"):
            assert parts(tokenizer, example_of(tokenizer, Demonstration("6*7?", text))) == [("42<|im_end|>", True)]

    def test_an_end_inside_an_answer_makes_it_useless(self, bytes_tokenizer):
        tokenizer, text = bytes_tokenizer(), "42<|im_end|>\nand more"
        with pytest.raises(Unusable, match="an answer with the token that ends a turn inside it"):
            example_of(tokenizer, Demonstration("6*7?", text))
        for chosen, rejected in ((text, "42"), ("42", text)):
            with pytest.raises(Unusable, match="an answer with the token that ends a turn inside it"):
                example_of(tokenizer, Comparison("6*7?", chosen, rejected), rendered=True)
        with pytest.raises(Unusable, match="a step with the token that ends a turn inside it"):
            example_of(tokenizer, Steps("6*7?", ("6*7", text), (1.0, 1.0)))

    def test_a_template_that_writes_bos_has_it_once(self, bytes_tokenizer):
        tokenizer = bytes_tokenizer(LLAMA3)
        example = example_of(tokenizer, Demonstration(said("6*7?"), answered("42")))
        bos = tokenizer.model_tokenizer.vocabulary["<s>"]
        assert example.prompt_ids[0] == bos
        assert bos not in (*example.prompt_ids[1:], *example.answers[0].token_ids)

    def test_a_token_across_the_boundary_is_split_as_the_engine_splits_it(self, bytes_tokenizer):
        """Prompt and answer as one text would be `a`, `bc`; the engine gets `a`, `b`, and samples `c` after them."""
        tokenizer = bytes_tokenizer(None, merges="bc")
        merged = tokenizer.model_tokenizer.encode("abc", special=False)
        assert len(merged) == 2
        pair = example_of(tokenizer, Comparison("ab", "c", "d"), chat=False)
        encode = tokenizer.model_tokenizer.encode
        assert pair.prompt_ids == tuple(encode("ab", special=False))
        assert pair.answers[0].token_ids.tolist() == [*encode("c", special=False), tokenizer.answer_end(chat=False)]

    def test_no_space_is_written_before_an_answer_that_the_engine_would_not_sample(self, spaced_tokenizer):
        """SentencePiece alone makes "_42" of "42"; after a line end it is "4", "2"."""
        encode = spaced_tokenizer.model_tokenizer.encode
        vocabulary = spaced_tokenizer.model_tokenizer.vocabulary
        assert encode("42", special=False) == [vocabulary["\u258142"]]
        example = example_of(spaced_tokenizer, Demonstration("6+36?", "42"))
        assert example.answers[0].token_ids.tolist() == [vocabulary["4"], vocabulary["2"], vocabulary["</s>"]]
        whole = (*example.prompt_ids, *example.answers[0].token_ids)
        assert whole == tuple(encode("<|user|>\n6+36?</s>\n<|assistant|>\n42</s>", special=False))

    def test_the_space_that_a_template_writes_before_answers_is_sampled_with_them(self, bytes_tokenizer):
        """As in Llama 2's and Mistral's: the prompt ends "[/INST]", and answers begin with a space."""
        template = (
            "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
            "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
        )
        tokenizer = bytes_tokenizer(template, eos="</s>")
        example = example_of(tokenizer, Demonstration("6*7?", "42"))
        assert prompt_text(tokenizer, example) == "<s>[INST] 6*7? [/INST]"
        assert parts(tokenizer, example) == [(" 42</s>", True)]
        steps = example_of(tokenizer, Steps("6*7?", ("6*7", "42"), (1.0, 1.0)), separator=";")
        assert "".join(text for text, _ in parts(tokenizer, steps)) == " 6*7;42;"

    def test_the_channel_that_a_template_writes_before_answers_is_sampled_with_them(self, bytes_tokenizer):
        """As in gpt-oss: the prompt ends "<|start|>assistant", and the model chooses the channel."""
        template = (
            "{% for m in messages %}<s>{{ m.role }}{{ '</s>final' if m.role == 'assistant' }}<|im_start|>"
            "{{ m.content }}<|im_end|>{% endfor %}{% if add_generation_prompt %}<s>assistant{% endif %}"
        )
        tokenizer = bytes_tokenizer(template)
        example = example_of(tokenizer, Demonstration(said("6*7?"), answered("42", "Sure?", "Yes.")))
        assert [text for text, is_trained in parts(tokenizer, example) if is_trained] == [
            "</s>final<|im_start|>42<|im_end|>",
            "</s>final<|im_start|>Yes.<|im_end|>",
        ]

    def test_a_system_prompt_is_part_of_the_context(self, bytes_tokenizer):
        tokenizer = bytes_tokenizer()
        example = example_of(tokenizer, Demonstration("6*7?", "42"), system_prompt="Be brief.")
        assert prompt_text(tokenizer, example).startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user")
        record = Demonstration((Message("system", "Rhyme."), *said("6*7?")), answered("42"))
        with pytest.raises(DataError, match=r"^t.jsonl:1: the prompt: starts with a system message"):
            example_of(tokenizer, record, system_prompt="Be brief.")

    def test_messages_without_the_chat_template_are_refused_with_the_place(self, bytes_tokenizer):
        with pytest.raises(DataError, match=r"^t.jsonl:1: data.chat=false feeds text"):
            example_of(bytes_tokenizer(), Demonstration(said("6*7?"), answered("42")), chat=False)

    def test_a_tokenizer_without_an_end_is_refused(self, bytes_tokenizer, tmp_path, write_tokenizer):
        folder = write_tokenizer(tmp_path / "endless", chat_template=None)
        (folder / "tokenizer_config.json").write_text("{}")
        (folder / "generation_config.json").unlink()
        with pytest.raises(DataError, match="no model could learn to stop; use a tokenizer with an eos_token"):
            ExampleTokenizer(ChatTokenizer(folder), chat=False)

    def test_text_that_the_tokenizer_drops_is_refused_in_answers_and_steps(self, tmp_path):
        """This tokenizer has a token for each of a few characters, and none for others, which vanish."""
        library = Tokenizer(models.BPE({letter: index for index, letter in enumerate("abc12")}, []))
        library.add_special_tokens(["</s>"])
        library.save(str(tmp_path / "tokenizer.json"))
        (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
        dropping = ChatTokenizer(tmp_path)
        assert example_of(dropping, Demonstration("ab", "12"), chat=False)
        for record in (Demonstration("ab", "1+2"), Steps("ab", ("12", "1+2"), (1.0, 1.0))):
            with pytest.raises(DataError, match=r"^t.jsonl:1: the tokenizer of .* loses text: '1\+2' becomes"):
                example_of(dropping, record, chat=False, separator="c")


class TestThoughts:
    def test_without_thinking_the_empty_thought_is_context(self, bytes_tokenizer):
        """TRL drops the 9 tokens of the thought from the context, because the rendered answer has none."""
        tokenizer = bytes_tokenizer(QWEN3, options={"enable_thinking": False})
        example = example_of(tokenizer, Demonstration("6*7?", "42"))
        assert prompt_text(tokenizer, example).endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
        assert parts(tokenizer, example) == [("42<|im_end|>", True)]

    def test_thoughts_after_an_empty_thought_are_refused(self, bytes_tokenizer):
        tokenizer = bytes_tokenizer(QWEN3, options={"enable_thinking": False})
        with pytest.raises(DataError, match=r"^t.jsonl:1: .* ends with an empty thought, and the answer begins with"):
            example_of(tokenizer, Demonstration("6*7?", "<think>7*6</think>42"))

    def test_thoughts_of_the_last_turn_are_trained_on(self, bytes_tokenizer):
        tokenizer = bytes_tokenizer(QWEN3)
        example = example_of(tokenizer, Demonstration("6*7?", "<think>\n7*6\n</think>\n\n42"))
        assert parts(tokenizer, example) == [("<think>\n7*6\n</think>\n\n42<|im_end|>", True)]

    def test_a_thought_that_the_prompt_begins_is_not_begun_again(self, bytes_tokenizer):
        opened = QWEN3.replace("<|im_start|>assistant\n{% if", "<|im_start|>assistant\n<think>\n{% if")
        tokenizer = bytes_tokenizer(opened)
        example = example_of(tokenizer, Demonstration("6*7?", "<think>\n7*6\n</think>\n\n42"))
        assert prompt_text(tokenizer, example).endswith("<|im_start|>assistant\n<think>\n")
        assert parts(tokenizer, example) == [("7*6\n</think>\n\n42<|im_end|>", True)]
        with pytest.raises(DataError, match="would learn to answer in its thoughts"):
            example_of(tokenizer, Demonstration("6*7?", "42"))


TEMPLATES = Path(util.find_spec("trl").origin).parent / "chat_templates"


class TestTemplatesOfModels:
    """Templates of real models, which TRL ships: each as it is, and for some a copy that keeps earlier thoughts."""

    @pytest.mark.parametrize(
        ("name", "context", "trained"),
        [
            ("llama3_1", "assistant<|end_header_id|>\n\n", ["42", "Yes."]),
            ("gemma3", "<start_of_turn>model\n", ["42", "Yes."]),
            ("phi3", "<|assistant|>\n", ["42", "Yes."]),
            ("qwen3", "<|im_start|>assistant\n", ["42", "Yes."]),
            (
                "qwen3_training",
                "<|im_start|>assistant\n",
                [f"<think>\n\n</think>\n\n{text}" for text in ("42", "Yes.")],
            ),
            ("qwen3_6_training", "<think>\n", [f"\n</think>\n\n{text}" for text in ("42", "Yes.")]),
            ("qwen3_5_nothink", "</think>\n\n", None),
            ("deepseek_r1_distill", "<think>\n", None),
        ],
    )
    def test_turns_are_trained_on_where_the_template_shows_them_as_they_are_sampled(
        self, bytes_tokenizer, name, context, trained
    ):
        tokenizer = bytes_tokenizer((TEMPLATES / f"{name}.jinja").read_text())
        record = Demonstration(said("6*7?"), answered("42", "Sure?", "Yes."))
        if trained is None:
            with pytest.raises(DataError):
                example_of(tokenizer, record)
            return
        example = example_of(tokenizer, record)
        assert prompt_text(tokenizer, example).endswith(context)
        end = tokenizer.model_tokenizer.decode([tokenizer.answer_end(chat=True)], skip_special_tokens=False)
        assert [text for text, is_trained in parts(tokenizer, example) if is_trained] == [
            text + end for text in trained
        ]


class TestConversations:
    TURNS = Demonstration(said("6*7?"), answered("42", "Sure?", "Yes."))

    def test_every_turn_of_the_assistant_is_trained_on_with_its_end_and_nothing_else(self, bytes_tokenizer):
        tokenizer = bytes_tokenizer()
        example = example_of(tokenizer, self.TURNS)
        assert parts(tokenizer, example) == [
            ("42<|im_end|>", True),
            ("\n<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\n", False),
            ("Yes.<|im_end|>", True),
        ]
        # Before each trained turn there is exactly what an engine gets in such a conversation.
        whole = (*example.prompt_ids, *example.answers[0].token_ids)
        assert whole[: len(example.prompt_ids)] == tokenizer.encode("6*7?", chat=True)
        second = tokenizer.encode(said("6*7?", "42", "Sure?"), chat=True)
        assert whole[: len(second)] == second

    def test_the_last_turn_alone_has_the_others_as_its_prompt(self, bytes_tokenizer):
        tokenizer = bytes_tokenizer()
        example = example_of(tokenizer, self.TURNS, train_on="last_turn")
        assert example.prompt_ids == tokenizer.encode(said("6*7?", "42", "Sure?"), chat=True)
        assert parts(tokenizer, example) == [("Yes.<|im_end|>", True)]

    def test_all_trains_on_every_token_but_the_first(self, bytes_tokenizer):
        tokenizer = bytes_tokenizer()
        whole = example_of(tokenizer, self.TURNS)
        example = example_of(tokenizer, self.TURNS, train_on="all")
        assert len(example.prompt_ids) == 1
        assert example.answers[0].loss_mask.all()
        tokens = [(*each.prompt_ids, *each.answers[0].token_ids) for each in (whole, example)]
        assert tokens[0] == tokens[1]

    def test_all_of_plain_text_has_no_template(self, bytes_tokenizer):
        tokenizer = bytes_tokenizer(None, eos="</s>")
        example = example_of(tokenizer, Demonstration("6*7=", "42"), train_on="all", chat=False)
        assert prompt_text(tokenizer, example) == "6"
        assert parts(tokenizer, example) == [("*7=42</s>", True)]

    def test_a_turn_with_weight_0_is_only_context(self, bytes_tokenizer):
        tokenizer = bytes_tokenizer()
        record = Demonstration(said("a?"), answered("A", "b?", "B", "c?", "C"), untrained=frozenset({2}))
        trained = [text for text, is_trained in parts(tokenizer, example_of(tokenizer, record)) if is_trained]
        assert trained == ["A<|im_end|>", "C<|im_end|>"]
        example = example_of(tokenizer, record, train_on="all")
        assert [text for text, is_trained in parts(tokenizer, example) if not is_trained] == ["B<|im_end|>"]
        example = example_of(tokenizer, record, train_on="last_turn")
        assert parts(tokenizer, example) == [("C<|im_end|>", True)]

    def test_a_word_that_the_model_cannot_read_does_not_hide_an_earlier_turn(self, spaced_tokenizer):
        example = example_of(spaced_tokenizer, Demonstration(said("6?"), answered("42!", "sure?", "yes.")))
        assert [text for text, is_trained in parts(spaced_tokenizer, example) if is_trained] == [
            "42<unk></s>",
            "yes.</s>",
        ]

    def test_a_template_that_trims_earlier_turns_is_exact(self, bytes_tokenizer):
        tokenizer = bytes_tokenizer(LLAMA3)
        example = example_of(tokenizer, Demonstration(said("6*7?"), answered(" 42 \n", "Sure?", "Yes.")))
        assert [text for text, is_trained in parts(tokenizer, example) if is_trained] == [
            "42<|im_end|>",
            "Yes.<|im_end|>",
        ]

    @pytest.mark.parametrize(
        ("options", "first"),
        [({}, "<think>\n7*6\n</think>\n\n42"), ({"enable_thinking": False}, "42")],
        ids=["it drops the thought", "the prompt had an empty thought"],
    )
    def test_a_template_that_rewrites_earlier_turns_is_refused_or_trained_on_its_last_turn(
        self, bytes_tokenizer, options, first
    ):
        tokenizer = bytes_tokenizer(QWEN3, options=options)
        record = Demonstration(said("6*7?"), answered(first, "Sure?", "Yes."))
        with pytest.raises(
            DataError, match=r"^t.jsonl:1: the chat template shows an earlier turn .*train_on: last_turn"
        ):
            example_of(tokenizer, record)
        example = example_of(tokenizer, record, train_on="last_turn")
        assert parts(tokenizer, example) == [("Yes.<|im_end|>", True)]
        # A turn that is not trained on may be rewritten: it is what the engine would show at this place.
        only_last = Demonstration(said("6*7?", first, "Sure?"), answered("Yes."))
        assert example_of(tokenizer, only_last).digest == example.digest

    def test_answers_of_a_pair_may_have_several_turns(self, bytes_tokenizer):
        tokenizer = bytes_tokenizer()
        pair = example_of(tokenizer, Comparison(said("6*7?"), answered("42", "Sure?", "Yes."), answered("41")))
        assert [is_trained for _, is_trained in parts(tokenizer, pair, 0)] == [True, False, True]
        assert parts(tokenizer, pair, 1) == [("41<|im_end|>", True)]
        assert pair.prompt_ids == tokenizer.encode("6*7?", chat=True)


def test_answers_with_the_same_tokens_are_no_comparison(tokenizer):
    # This tokenizer ignores spaces.
    with pytest.raises(Unusable, match="chosen and rejected have the same tokens"):
        example_of(tokenizer, Comparison(said("What"), answered("a  deep"), answered("a deep")))


class TestSteps:
    def test_the_loss_is_at_the_last_token_of_each_labelled_separator(self, bytes_tokenizer):
        tokenizer = bytes_tokenizer()
        record = Steps(said("3*3+1?"), ("3*3=9", "9+1", "So 11"), (1.0, None, 0.25))
        example = example_of(tokenizer, record, separator="\n\n")
        assert parts(tokenizer, example) == [
            ("3*3=9\n", False),
            ("\n", True),
            ("9+1\n\nSo 11\n", False),
            ("\n", True),
        ]
        assert example.step_labels.tolist() == [1.0, 0.25]
        assert example.prompt_ids == tokenizer.encode("3*3+1?", chat=True)

    def test_the_separator_is_never_part_of_another_token(self, bytes_tokenizer):
        """`9` and the separator would be one token if the solution were tokenised as a whole."""
        tokenizer = bytes_tokenizer(merges="9;")
        (answer,) = example_of(tokenizer, Steps("a", ("3*3=9", "9"), (1.0, 0.0)), separator=";").answers
        separator = tokenizer.model_tokenizer.encode(";", special=False)
        assert answer.token_ids[answer.loss_mask].tolist() == separator * 2

    def test_a_step_is_tokenised_after_the_separator_before_it(self, spaced_tokenizer):
        """After a prompt that ends with a space, 42 shares a token with it, and is tokenised alone, with a space."""
        record = Steps("6+36 ", ("42", "42"), (1.0, 1.0))
        (answer,) = example_of(spaced_tokenizer, record, chat=False, separator="+").answers
        names = {token: text for text, token in spaced_tokenizer.model_tokenizer.vocabulary.items()}
        assert [names[token] for token in answer.token_ids] == ["\u258142", "+", "4", "2", "+"]

    def test_a_separator_without_a_token_is_refused(self, tokenizer):
        with pytest.raises(ConfigError, match=r"algorithm.separator='\\n': the tokenizer has no token for it"):
            example_of(tokenizer, Steps("What", ("a",), (1.0,)))

    def test_steps_without_labels_are_useless(self, bytes_tokenizer):
        with pytest.raises(Unusable, match="no step with a label"):
            example_of(bytes_tokenizer(), Steps("a", ("b",), (None,)))


SMOLLM2_FOLDER = Path("~/.cache/ray_rl/models/smollm2-135m-instruct").expanduser()


@pytest.mark.skipif(not (SMOLLM2_FOLDER / "tokenizer.json").is_file(), reason=f"no tokenizer in {SMOLLM2_FOLDER}")
def test_smollm2_learns_an_answer_and_its_end_after_its_own_system_prompt():
    tokenizer = ChatTokenizer(SMOLLM2_FOLDER)
    example = example_of(tokenizer, Comparison(said("6*7?"), answered("42"), answered("It is 41.")))
    assert example.answers[0].token_ids.tolist() == [36, 34, 2]
    assert example.answers[1].token_ids[-1] == 2
    assert prompt_text(tokenizer, example) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\n6*7?<|im_end|>\n<|im_start|>assistant\n"
    )
