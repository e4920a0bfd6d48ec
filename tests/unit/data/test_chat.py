import json

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from ray_rl.config.data import Jsonl
from ray_rl.data.chat import ChatTokenizer
from ray_rl.data.ends import without_end
from ray_rl.data.source import build_source
from ray_rl.data.template import without_file
from ray_rl.errors import ConfigError, DataError
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
    assert tokenizer.ends((), (), chat=False).token_ids == (ids["<|end|>"], ids["<s>"])


def test_messages_without_chat_are_refused(tokenizer):
    with pytest.raises(DataError, match=r"data.chat=false feeds text, .* set data.chat: true"):
        tokenizer.encode([Message("user", "What")], chat=False)


def test_a_model_without_a_chat_template_is_refused(tmp_path, write_tokenizer):
    tokenizer = ChatTokenizer(write_tokenizer(tmp_path, chat_template=None))
    with pytest.raises(DataError, match=r"no chat template; set model.chat_template .* data.chat: false"):
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


class TestEnds:
    """The fixture's tokenizer ends a text with <|end|>, and its generation_config.json with <s>, token 1, too."""

    def test_a_stop_text_that_is_a_special_token_ends_as_that_token(self, tokenizer, ids):
        ends = tokenizer.ends(["<|user|>"], [], chat=False)
        assert ends.token_ids == (ids["<|end|>"], ids["<s>"], ids["<|user|>"])

    def test_a_stop_text_that_is_an_ordinary_token_ends_as_token_and_as_text(self, tokenizer, ids):
        ends = tokenizer.ends(["What", "is a"], [], chat=False)
        assert ends.token_ids == (ids["<|end|>"], ids["<s>"], ids["What"])
        assert ends.texts == ("What", "is a")

    def test_a_token_added_to_a_base_model_ends_as_token_though_it_is_not_special(self, tmp_path, write_tokenizer):
        library = Tokenizer.from_file(str(write_tokenizer(tmp_path) / "tokenizer.json"))
        library.add_tokens(["<end_of_turn>"])
        library.save(str(tmp_path / "tokenizer.json"))
        added = library.token_to_id("<end_of_turn>")
        assert added in ChatTokenizer(tmp_path).ends(["<end_of_turn>"], [], chat=False).token_ids

    def test_tokens_of_the_configuration_are_added(self, tokenizer, ids):
        assert tokenizer.ends([], [6, 1], chat=False).token_ids == (ids["<|end|>"], ids["<s>"], 6)

    def test_a_token_that_the_tokenizer_has_not_is_refused(self, tokenizer):
        with pytest.raises(ConfigError, match=r"^rollout.stop_token_ids=999: the tokenizer of .* has no such token"):
            tokenizer.ends([], [999], chat=False)

    @pytest.mark.parametrize("text", ["<|user|>\n", "\n<|user|>", "a<|user|>"])
    def test_a_stop_text_around_a_special_token_would_never_appear_and_is_refused(self, tokenizer, text):
        with pytest.raises(ConfigError, match=r"contains the special token '<\|user\|>', .*give the token alone"):
            tokenizer.ends([text], [], chat=False)

    @pytest.mark.parametrize(
        ("template", "end"),
        [
            ("{% for m in messages %}<|user|>{{ m.content }}<|end|>{% endfor %}", "<|end|>"),
            ("{% for m in messages %}<|user|>{{ m.content }} \n <|system|>\n{% endfor %}", "<|system|>"),
            ("{% for m in messages %}<|user|>{{ m.content | trim }}{% endfor %}", "<|user|>"),
            ("{% for m in messages %}{{ m.content }} with a {% endfor %}", None),
            ("{% for m in messages %}{{ m.content }}{% endfor %}", None),
            ("{{ messages[0].content }}{{ messages[1].x.y }}", None),
        ],
    )
    def test_the_turn_end_is_the_token_behind_an_answer(self, tmp_path, write_tokenizer, template, end, ids):
        folder = write_tokenizer(tmp_path, chat_template=template)
        settings = json.loads((folder / "tokenizer_config.json").read_text()) | {"eos_token": None}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        (folder / "generation_config.json").write_text("{}")
        ours = ChatTokenizer(folder)
        assert ours.ends([], [], chat=True).token_ids == (() if end is None else (ids[end],))
        assert ours.ends([], [], chat=False).token_ids == ()

    def test_without_a_generation_config_the_model_s_own_says_what_ends_a_text(self, tmp_path, write_tokenizer, ids):
        folder = write_tokenizer(tmp_path)
        (folder / "generation_config.json").unlink()
        (folder / "config.json").write_text('{"eos_token_id": 3}')
        assert ChatTokenizer(folder).ends((), (), chat=False).token_ids == (ids["<|end|>"], 3)

    def test_a_model_that_sees_says_it_in_its_part_that_writes(self, tmp_path, write_tokenizer, ids):
        folder = write_tokenizer(tmp_path)
        (folder / "generation_config.json").unlink()
        (folder / "config.json").write_text('{"text_config": {"eos_token_id": [3]}}')
        assert ChatTokenizer(folder).ends((), (), chat=False).token_ids == (ids["<|end|>"], 3)

    def test_a_model_without_any_end_is_warned_of(self, tmp_path, write_tokenizer, run_config):
        folder = write_tokenizer(tmp_path, chat_template="{% for m in messages %}{{ m.content }} {% endfor %}")
        (folder / "tokenizer_config.json").write_text(
            json.dumps(json.loads((folder / "tokenizer_config.json").read_text()) | {"eos_token": None})
        )
        (folder / "generation_config.json").unlink()
        config = run_config({"kind": "addition"})
        ends = ChatTokenizer(folder).ends_of(config.rollout, config.data)
        told = without_end(ends, model="tiny", max_tokens=512)
        assert told.startswith("warning: nothing ends a completion of tiny: ")
        assert told.endswith("each runs to rollout.max_tokens=512; set rollout.stop_token_ids or rollout.stop")
        stopped = run_config({"kind": "addition"}, rollout={"stop_token_ids": [5]})
        ends = ChatTokenizer(folder).ends_of(stopped.rollout, stopped.data)
        assert without_end(ends, model="tiny", max_tokens=512) is None

    @pytest.mark.parametrize(
        ("text", "told"), [("{", "is not a JSON object"), ('{"eos_token_id": "x"}', "is not a token id")]
    )
    def test_a_damaged_generation_config_is_named(self, tmp_path, write_tokenizer, text, told):
        (write_tokenizer(tmp_path) / "generation_config.json").write_text(text)
        with pytest.raises(DataError, match=rf"generation_config.json: .*{told}"):
            ChatTokenizer(tmp_path)


class TestPlainPrompts:
    @pytest.mark.parametrize("form", ["<s> $A <|end|>", "$A <|end|>", "<s> <|user|> $A <|end|> <|end|>"])
    def test_what_a_tokenizer_puts_behind_a_text_is_left_out(self, tmp_path, write_tokenizer, form, ids):
        library = Tokenizer.from_file(str(write_tokenizer(tmp_path) / "tokenizer.json"))
        special = [(name, ids[name]) for name in ("<s>", "<|user|>", "<|end|>")]
        library.post_processor = processors.TemplateProcessing(single=form, special_tokens=special)
        library.save(str(tmp_path / "tokenizer.json"))
        before = [ids[name] for name in form.split("$A")[0].split()]
        assert ChatTokenizer(tmp_path).encode("What is", chat=False) == (*before, ids["What"], ids["is"])

    def test_an_end_that_the_text_itself_has_stays(self, tokenizer, ids):
        assert tokenizer.encode("What <|end|>", chat=False) == (ids["What"], ids["<|end|>"])


class TestLostText:
    def write(self, folder, alphabet, normalizer=None):
        """A tokenizer with one token a character, and none for the others, which vanish."""
        library = Tokenizer(models.BPE({letter: index for index, letter in enumerate(alphabet)}, []))
        library.normalizer = normalizer
        library.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        library.save(str(folder / "tokenizer.json"))
        return ChatTokenizer(folder, chat_template="{% for m in messages %}{{ m.content }} {% endfor %}")

    @pytest.mark.parametrize("chat", [True, False])
    def test_characters_that_the_tokenizer_drops_are_refused(self, tmp_path, chat):
        ours = self.write(tmp_path, "abc 12")
        assert ours.encode("ab 12", chat=chat)
        with pytest.raises(DataError, match=r"^the tokenizer of .* loses text: 'ab 12\+3' becomes '"):
            ours.encode("ab 12+3", chat=chat)

    def test_what_the_tokenizer_normalizes_is_not_lost(self, tmp_path):
        ours = self.write(tmp_path, "cafe 12", normalizers.BertNormalizer(lowercase=True))
        assert ours.encode("CAF\u00c9  12", chat=True)

    def test_a_text_that_no_tokenizer_can_read_is_refused(self, tmp_path):
        with pytest.raises(DataError, match="cannot read"):
            self.write(tmp_path, "abc").encode("a\ud800b", chat=False)

    def test_the_row_is_named(self, tmp_path, write_tokenizer, jsonl):
        tokenizer = ChatTokenizer(write_tokenizer(tmp_path / "m", chat_template="{{ messages[-1].content }}"))
        path = jsonl(
            {"prompt": "a"}, {"prompt": [{"role": "system", "content": "Be"}, {"role": "user", "content": "a"}]}
        )
        source = build_source(Jsonl(path=path, shuffle=False), seed=0, tokenizer=tokenizer)
        with pytest.raises(DataError, match=r"^train.jsonl:2: the chat template .* leaves out .* system message, 'Be'"):
            source.take(2)


class TestOwnTemplate:
    NAMED = ({"name": "rag", "template": "{{ messages[0].content }} a"}, {"name": "tool", "template": "x"})

    @pytest.mark.parametrize("as_file", [True, False])
    def test_it_takes_the_place_of_the_model_s(self, tmp_path, write_tokenizer, ids, as_file):
        template = "{{ messages[0].content }} {{ word }}"
        if as_file:
            (tmp_path / "own.jinja").write_text(template)
        value = str(tmp_path / "own.jinja") if as_file else template
        ours = ChatTokenizer(write_tokenizer(tmp_path / "m"), chat_template=value, template_options={"word": "with"})
        assert ours.encode("What", chat=True) == (ids["What"], ids["with"])
        # The export carries it.
        exported = ChatTokenizer(tmp_path / "m", chat_template=ours.changed_template)
        assert exported.encode("What", chat=True) == (ids["What"], ids["with"])

    def test_the_model_s_own_needs_no_change_of_the_export(self, tokenizer):
        assert tokenizer.changed_template is None

    @pytest.mark.parametrize("form", ["list", "dict", "folder"])
    def test_of_named_templates_the_default_is_taken_or_the_one_named(self, tmp_path, write_tokenizer, ids, form):
        named = {"default": "{{ messages[0].content }} is", "rag": "{{ messages[0].content }} a"}
        settings = {
            "list": [{"name": name, "template": text} for name, text in named.items()],
            "dict": named,
            "folder": named["default"],
        }
        folder = write_tokenizer(tmp_path, chat_template=settings[form])
        if form == "folder":
            (folder / "additional_chat_templates").mkdir()
            (folder / "additional_chat_templates" / "rag.jinja").write_text(named["rag"])
        assert ChatTokenizer(folder).encode("What", chat=True) == (ids["What"], ids["is"])
        assert ChatTokenizer(folder, chat_template="rag").encode("What", chat=True) == (ids["What"], ids["a"])

    def test_named_templates_without_a_default_are_told(self, tmp_path, write_tokenizer):
        with pytest.raises(
            DataError, match=r"has the chat templates rag, tool, and none of them is called default; set"
        ):
            ChatTokenizer(write_tokenizer(tmp_path, chat_template=self.NAMED)).encode("What", chat=True)

    def test_what_is_neither_text_nor_file_nor_name_is_refused(self, tmp_path, write_tokenizer):
        folder = write_tokenizer(tmp_path, chat_template=self.NAMED)
        with pytest.raises(
            ConfigError, match=r"^model.chat_template=chatml: neither Jinja text, nor a file, nor the name of a"
        ):
            ChatTokenizer(folder, chat_template="chatml")

    def test_the_run_folder_holds_the_text_of_a_file(self, tmp_path):
        (tmp_path / "own.jinja").write_text("{{ messages }}")
        assert without_file(str(tmp_path / "own.jinja")) == "{{ messages }}"
        assert without_file("{{ messages }}" * 1000) == "{{ messages }}" * 1000
        assert without_file("rag") == "rag"

    def test_a_template_that_is_not_valid_is_refused_when_the_tokenizer_is_loaded(self, tmp_path, write_tokenizer):
        """Not by the export, after the last step."""
        with pytest.raises(DataError, match="is not valid: TemplateSyntaxError in line 1"):
            ChatTokenizer(write_tokenizer(tmp_path), chat_template="{% for %}")

    def test_options_without_the_chat_template_are_refused(self, model_folder, run_config):
        data = {"kind": "jsonl", "path": "x", "chat": False, "template_options": {"think": False}}
        with pytest.raises(ConfigError, match=r"^data.template_options needs the chat template, but data.chat=false"):
            config = run_config(data)
            ChatTokenizer.of_policy(config.model, config.data, model_folder)


@pytest.mark.parametrize(
    "rendered",
    [
        "<|im_start|>user\nWhat is 1+1?<|im_end|>\n<|im_start|>assistant\n",
        "<|im_start|>user\nWhat is 1+1?<|im_end|>\n<|im_start|>assistant\n<think>\n",
        "<s>[INST] What is 1+1? [/INST]",
        "<|start_header_id|>user<|end_header_id|>\n\nWhat?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        "<start_of_turn>user\nWhat?<end_of_turn>\n<start_of_turn>model\n",
        "<\uff5cUser\uff5c>What?<\uff5cAssistant\uff5c><think>\n",
        "What <|end|> <|assistant|>",
    ],
)
def test_a_prompt_that_went_through_a_template_before_is_refused(tokenizer, rendered):
    for prompt in (rendered, [Message("user", rendered)]):
        with pytest.raises(DataError, match=r"already gone through a template; .* set data\.chat: false \(for files"):
            tokenizer.encode(prompt, chat=True)


def test_a_question_about_templates_is_none(tokenizer):
    assert tokenizer.encode("What is <|im_start|>assistant in ChatML?", chat=True)
