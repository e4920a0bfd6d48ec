import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from ray_rl.config.run import RunConfig
from ray_rl.data.chat import ChatTokenizer
from tests.algorithm import algorithm

WORDS = ["[UNK]", "<s>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "What", "is", "Answer", "with", "a"]
CHAT_TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}"
    "<|{{ m.role }}|> {{ m.content }} <|end|> {% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def _write_tokenizer(folder: Path, *, chat_template: str | None = CHAT_TEMPLATE) -> Path:
    """One token a word, one token a digit."""
    words = [*WORDS, *"0123456789+?.", "number", "deep", "thought", "Be", "brief"]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.Digits(individual_digits=True)]
    )
    tokenizer.add_special_tokens(["<s>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"eos_token": "<|end|>", "bos_token": "<s>", "clean_up_tokenization_spaces": False}
    if chat_template is not None:
        settings["chat_template"] = chat_template
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 1]}))
    return folder


@pytest.fixture(scope="session")
def write_tokenizer() -> Callable[..., Path]:
    return _write_tokenizer


@pytest.fixture(scope="session")
def ids() -> dict[str, int]:
    """Token of each word."""
    return {word: index for index, word in enumerate(WORDS)}


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _write_tokenizer(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def tokenizer(model_folder: Path) -> ChatTokenizer:
    return ChatTokenizer(model_folder)


@pytest.fixture
def jsonl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Writes lines to train.jsonl in the working folder; what is not text is dumped."""
    monkeypatch.chdir(tmp_path)

    def write(*lines: object) -> str:
        text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
        (tmp_path / "train.jsonl").write_text(text)
        return "train.jsonl"

    return write


@pytest.fixture
def run_config(model_folder: Path) -> Callable[..., RunConfig]:
    def make(data: dict[str, object], *rewards: dict[str, object], **sections: object) -> RunConfig:
        whole = {
            "run": {"name": "test", "steps": 1},
            "model": {"path": str(model_folder)},
            "data": data,
            "rewards": list(rewards) or [{"kind": "length", "target": 8}],
            "algorithm": algorithm(),
        }
        return RunConfig.model_validate(whole | sections)

    return make
