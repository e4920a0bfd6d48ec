"""The one loader against the `tokenizers` library, token for token, for the shapes that published models have."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from ray_rl.data.chat import ChatTokenizer
from ray_rl.data.tokenizer import copy_tokenizer, load_tokenizer
from ray_rl.errors import DataError
from tests.tokenizer_shapes import SHAPES, TEXTS, Shape, in_hub_cache, offline_hub, reference


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the hub, with every shape in it."""
    folder = tmp_path_factory.mktemp("hub")
    for shape in SHAPES:
        in_hub_cache(shape, folder)
    return folder


@pytest.fixture(params=["folder", "hub"])
def place(request, cache, monkeypatch) -> str:
    offline_hub(monkeypatch, cache)
    return str(request.param)


def lies_in(shape: Shape, cache: Path) -> Path:
    return cache / f"models--acme--{shape.name}" / "blobs"


def named(shape: Shape, place: str, cache: Path) -> str:
    """What `model.path` says."""
    return f"acme/{shape.name}" if place == "hub" else str(lies_in(shape, cache))


def test_there_are_twelve_shapes():
    assert len({shape.name for shape in SHAPES}) == 12


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
class TestShapes:
    def test_prompts_are_what_the_library_makes_of_the_rendered_text(self, shape, place, cache):
        library, ours = reference(lies_in(shape, cache)), ChatTokenizer(named(shape, place, cache))
        for text in TEXTS:
            expected = library.encode(shape.rendered(text), add_special_tokens=False).ids
            assert ours.encode(text, chat=True) == tuple(expected)

    def test_plain_prompts_are_what_the_library_makes_of_them_up_to_their_end(self, shape, place, cache):
        library, ours = reference(lies_in(shape, cache)), ChatTokenizer(named(shape, place, cache))
        for text in TEXTS:
            whole, bare = library.encode(text).ids, library.encode(text, add_special_tokens=False).ids
            before = 0 if shape.name in ("t5", "gpt2", "qwen-base", "phi") else 1
            assert ours.encode(text, chat=False) == tuple(whole[: before + len(bare)])

    def test_completions_read_as_the_library_decodes_them(self, shape, place, cache):
        library, ours = reference(lies_in(shape, cache)), ChatTokenizer(named(shape, place, cache))
        for text in (*TEXTS, f"The answer{shape.user} is 42{shape.end}"):
            token_ids = library.encode(text).ids
            assert ours.decode(token_ids) == library.decode(token_ids)

    def test_an_export_has_the_same_files_and_makes_the_same_tokens(self, shape, place, cache, tmp_path):
        source = lies_in(shape, cache)
        copied = copy_tokenizer(named(shape, place, cache), tmp_path)
        assert sorted(copied) == ["tokenizer.json", "tokenizer_config.json"]
        for name in copied:
            assert (tmp_path / name).read_bytes() == (source / name).read_bytes()
            assert not (tmp_path / name).is_symlink()
        assert ChatTokenizer(tmp_path).encode(TEXTS[0], chat=True) == ChatTokenizer(source).encode(TEXTS[0], chat=True)

    def test_an_answer_ends_with_the_end_of_a_turn(self, shape, place, cache):
        library, ours = reference(lies_in(shape, cache)), ChatTokenizer(named(shape, place, cache))
        expected = {library.token_to_id(token.strip()) for token in (shape.eos, shape.end, *shape.generation_eos)}
        assert set(ours.ends([], [], chat=True).token_ids) == expected


def test_spaces_survive_where_a_byte_level_tokenizer_is_called_llama_s(cache):
    ours = ChatTokenizer(lies_in(SHAPES[0], cache))
    prompt = ours.encode("The answer\n\nis 42", chat=True)
    assert ours.model_tokenizer.decode(prompt) == "user\nThe answer\n\nis 42assistant\n"


def write_words(folder: Path, **settings: object) -> Path:
    """A tokenizer of five words and no special tokens."""
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1, "</s>": 2, "<x>": 3, "[UNK]": 4}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


class TestSettings:
    def test_a_named_token_that_tokenizer_json_does_not_list_is_one_token(self, tmp_path):
        ours = load_tokenizer(write_words(tmp_path, eos_token={"content": "</s>", "__type": "AddedToken"}))
        assert ours.encode("a</s>b", special=False) == [0, 2, 1]
        assert ours.decode([0, 2, 1]) == "a b"
        assert ours.id_of("eos_token") == 2

    def test_the_map_of_special_tokens_counts_where_older_models_have_it(self, tmp_path):
        write_words(tmp_path, eos_token="<x>")
        (tmp_path / "special_tokens_map.json").write_text(json.dumps({"eos_token": {"content": "</s>"}}))
        assert load_tokenizer(tmp_path).special_tokens == {"eos_token": "</s>"}

    def test_tokens_that_only_the_settings_declare_are_added_with_their_ids(self, tmp_path):
        added = {"5": {"content": "<think>", "special": False}, "6": {"content": "<end>", "special": True}}
        ours = load_tokenizer(write_words(tmp_path, added_tokens_decoder=added))
        assert ours.encode("a<think>b<end>", special=False) == [0, 5, 1, 6]
        assert ours.decode([0, 5, 1, 6]) == "a <think> b"
        assert ours.special_ids == {6}

    def test_a_declared_id_that_the_vocabulary_contradicts_is_refused(self, tmp_path):
        write_words(tmp_path, added_tokens_decoder={"9": {"content": "<think>", "special": False}})
        with pytest.raises(DataError, match=r"'<think>' has the id 9 in tokenizer_config.json, and would get 5 in"):
            load_tokenizer(tmp_path)

    @pytest.mark.parametrize(
        ("name", "text", "told"),
        [
            ("tokenizer.json", "{", "EOF|expected|column"),
            ("tokenizer.json", '{"version": "1.0"}', "model|missing|ModelWrapper"),
            ("tokenizer_config.json", "[]", "tokenizer_config.json holds list, not an object"),
            ("tokenizer_config.json", "{", "tokenizer_config.json: "),
            ("tokenizer_config.json", '{"chat_template": [{"template": "x"}]}', "name"),
        ],
    )
    def test_damaged_files_are_named(self, tmp_path, name, text, told):
        write_words(tmp_path)
        (tmp_path / name).write_text(text)
        with pytest.raises(DataError, match=rf"^model.path={tmp_path}: no tokenizer could be loaded: .*({told})"):
            load_tokenizer(tmp_path)

    def test_a_name_that_neither_the_disk_nor_the_hub_knows_is_refused(self, tmp_path, monkeypatch):
        offline_hub(monkeypatch, tmp_path)
        told = (
            r"^model.path=acme/none: no such folder, and no tokenizer could be loaded from .* hub: [^\n]*[^.]; name a"
        )
        with pytest.raises(DataError, match=told):
            load_tokenizer("acme/none")


class TestExport:
    FILES = (
        "tokenizer.model",
        "vocab.txt",
        "tekken.json",
        "added_tokens.json",
        "tokenization_mine.py",
        "qwen.tiktoken",
    )

    def test_every_file_of_a_tokenizer_comes_along(self, tmp_path):
        source, to = tmp_path / "source", tmp_path / "to"
        source.mkdir()
        to.mkdir()
        write_words(source, chat_template="{{ messages }}")
        (source / "additional_chat_templates").mkdir()
        (source / "additional_chat_templates" / "rag.jinja").write_text("{{ messages }}")
        (source / "model.safetensors").write_bytes(b"weights")
        for name in self.FILES:
            (source / name).write_bytes(name.encode())
        copy_tokenizer(source, to)
        files = {str(file.relative_to(to)) for file in to.rglob("*") if file.is_file()}
        assert files == {"tokenizer.json", "tokenizer_config.json", "additional_chat_templates/rag.jinja", *self.FILES}
        assert all((to / name).read_bytes() == (source / name).read_bytes() for name in files)

    def test_the_template_that_was_used_is_the_only_one_of_the_export(self, tmp_path):
        source, to = tmp_path / "source", tmp_path / "to"
        source.mkdir()
        to.mkdir()
        write_words(source, chat_template="old", eos_token="</s>")
        (source / "additional_chat_templates").mkdir()
        (source / "additional_chat_templates" / "rag.jinja").write_text("old")
        (source / "chat_template.json").write_text('{"chat_template": "old"}')
        copy_tokenizer(source, to, chat_template="{{ messages[0].content }}!")
        assert load_tokenizer(to).templates == {"default": "{{ messages[0].content }}!"}
        assert "old" not in (to / "tokenizer_config.json").read_text()
        assert load_tokenizer(to).special_tokens == {"eos_token": "</s>"}

    def test_a_folder_without_a_vocabulary_is_refused(self, tmp_path):
        (tmp_path / "tokenizer_config.json").write_text("{}")
        (tmp_path / "to").mkdir()
        with pytest.raises(DataError, match="no file contains a vocabulary"):
            copy_tokenizer(tmp_path, tmp_path / "to")


class TestDifference:
    def test_a_tokenizer_that_reads_otherwise_is_told_with_both_values(self, cache):
        """The engine's is one of transformers; here only what of it is called."""

        class Spaceless:
            def __call__(self, text, add_special_tokens):
                return {"input_ids": ours.encode(text.replace(" ", ""), special=False)}

        ours = load_tokenizer(lies_in(SHAPES[0], cache))
        told = ours.difference(Spaceless())
        text = "The answer is 42.\n\nTherefore, 17 + 25 = 42;  two  spaces\tand a tab."
        both = (ours.encode(text, special=False), ours.encode(text.replace(" ", ""), special=False))
        assert told == f"{text!r} is {both[0]} in tokenizer.json, and {both[1]}"

    def test_a_tokenizer_that_decodes_otherwise_is_told_with_both_values(self, cache):
        class Marked:
            def __call__(self, text, add_special_tokens):
                return {"input_ids": ours.encode(text, special=False)}

            def decode(self, token_ids, skip_special_tokens):
                return ours.decode(token_ids, skip_special_tokens).replace(" ", "\u0120")

        ours = load_tokenizer(lies_in(SHAPES[0], cache))
        assert "are 'The answer is 42." in ours.difference(Marked())
        assert "and 'The\u0120answer\u0120is\u012042." in ours.difference(Marked())

    def test_what_the_engine_is_given_says_nothing_of_a_family(self, cache, tmp_path):
        ours = load_tokenizer(lies_in(SHAPES[0], cache))
        folder = ours.save_for_engine(tmp_path)
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
        assert isinstance(reference(folder).decoder, decoders.ByteLevel)


def test_a_model_of_text_may_share_the_tokenizer_of_one_that_sees(tmp_path):
    """Gemma 3 1B: 262,144 rows, and the token <image_soft_token> with that id."""
    tokenizer = Tokenizer(models.WordLevel({"What": 0, "[UNK]": 1}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["<eos>", "<image_soft_token>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gemma3_text", "vocab_size": 3}))
    assert load_tokenizer(tmp_path).largest == ("<eos>", 2)
    chat = ChatTokenizer(tmp_path)
    assert chat.encode("What What", chat=False) == (0, 0)
    with pytest.raises(DataError, match=r"'<image_soft_token>' \(3\), and the model of .* has 3 rows of embeddings"):
        chat.encode("What <image_soft_token>", chat=False)
    tokenizer.add_special_tokens(["<|im_end|>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(tmp_path).largest == ("<|im_end|>", 4)
