"""The only loader of tokenizers, for the policy, the engines, reward models and exports.

`tokenizer.json` is read only by the `tokenizers` library. transformers' `AutoTokenizer` replaces parts of it with
defaults of the model's family, so that a byte-level tokenizer under Llama's name loses every space.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray_rl.errors import DataError

if TYPE_CHECKING:
    import tokenizers
    from transformers import PreTrainedTokenizerBase

TOKENIZER_FILES = (
    "tokenizer*.json",
    "tokenizer.model*",
    "*.model",
    "*.tiktoken",
    "*.jinja",
    "*.py",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*.json",
    "vocab*.txt",
    "merges.txt",
    "tekken.json",
    "spiece.model",
    "chat_template.json",
    "additional_chat_templates/*.jinja",
)
"""Patterns of a tokenizer's files: vocabularies, templates, and code of tokenizers with their own code."""
MODEL_SETTINGS = ("config.json", "generation_config.json")
VOCABULARIES = ("tokenizer.json", "*.model", "vocab*.json", "vocab*.txt", "*.tiktoken", "tekken.json")
"""Patterns of files with a vocabulary; at least one must exist."""

NO_LIMIT = 10**30
"""transformers' value for the longest sequence of a tokenizer without a limit."""

_NO_TEXT = re.compile(r"image|audio|video|vision", re.IGNORECASE)
PROBES = (
    "The answer is 42.\n\nTherefore, 17 + 25 = 42;  two  spaces\tand a tab.",
    'def f(x):\n    return x ** 2  # it\'s (not) "quoted"\n',
    "Stra\u00dfe, na\u00efve, \u6570\u5b66, \u043f\u0440\u0438\u0432\u0435\u0442, \U0001f600 \u222b x\u00b2 dx",
    " leading, trailing ",
)
"""Texts that show differences between two tokenizers: spaces, line ends, digits, accents and scripts."""


def tokenizer_folder(path: str | Path) -> Path:
    """Returns the folder of a tokenizer's files: the folder itself, or for a hub name the snapshot in the hub's cache.

    Does not download weights. With `HF_HUB_OFFLINE=1` or without a network the cache must have the files.

    Raises:
        OSError, ValueError: the path is neither a folder nor a name that the hub or its cache knows.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(str(path), allow_patterns=[*TOKENIZER_FILES, *MODEL_SETTINGS]))


def tokenizer_files(folder: Path) -> list[Path]:
    """Returns the files of the tokenizer in `folder`, sorted, including templates and code."""
    return sorted({file for pattern in TOKENIZER_FILES for file in folder.glob(pattern) if file.is_file()})


def copy_tokenizer(source: str | Path, to: Path, *, chat_template: str | None = None) -> list[str]:
    """Copies the files of a tokenizer unchanged; no library saves them again and might change them.

    Args:
        source: a folder or a hub name.
        to: an existing folder.
        chat_template: the template that was used instead of the tokenizer's own; it becomes the only one of the copy.

    Returns:
        Names of the copied files, relative to `to`.

    Raises:
        DataError: `source` has no tokenizer.
    """
    with _explained(source, key="model.path"):
        folder = tokenizer_folder(source)
    files = tokenizer_files(folder)
    for file in files:
        copy = to / file.relative_to(folder)
        copy.parent.mkdir(exist_ok=True)
        shutil.copyfile(file, copy)
    if not any(next(folder.glob(pattern), None) for pattern in VOCABULARIES):
        raise DataError(f"model.path={source}: no file contains a vocabulary; use a folder with tokenizer.json")
    if chat_template is not None:
        _set_template(to, chat_template)
    return [str(file.relative_to(folder)) for file in files]


def _set_template(folder: Path, template: str) -> None:
    """Makes `template` the only template of a copied tokenizer, in every place from which it can be read."""
    shutil.rmtree(folder / "additional_chat_templates", ignore_errors=True)
    for file in folder.glob("chat_template*.json"):
        file.unlink()
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    settings = folder / "tokenizer_config.json"
    content = json.loads(settings.read_text(encoding="utf-8")) if settings.is_file() else {}
    if "chat_template" in content:
        content["chat_template"] = template
        settings.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class ModelTokenizer:
    """Converts text to tokens and back, with the `tokenizers` library and `tokenizer.json`.

    transformers is used only for tokenizers that exist only in Python (remote code, some of SentencePiece).
    """

    folder: Path
    """The folder with the tokenizer's files; for a hub name its snapshot."""
    backend: tokenizers.Tokenizer | PreTrainedTokenizerBase
    special_tokens: Mapping[str, str]
    """Special tokens by name: `bos_token`, `eos_token` ... Templates can use them."""
    templates: Mapping[str, str] = field(default_factory=dict)
    """Chat templates by name; a single one is called `default`."""
    max_tokens: int | None = None
    """Length of the longest sequence that the tokenizer's settings allow."""

    @cached_property
    def library(self) -> tokenizers.Tokenizer | None:
        """The object of the `tokenizers` library; None for a tokenizer in Python."""
        from tokenizers import Tokenizer

        return self.backend if isinstance(self.backend, Tokenizer) else None

    @cached_property
    def vocabulary(self) -> Mapping[str, int]:
        """Id of every token, including added ones."""
        return self.backend.get_vocab()

    @cached_property
    def added(self) -> Mapping[str, int]:
        """Ids of the tokens that are matched in a text before all others: special and other added tokens."""
        return {token.content: index for index, token in self._added_tokens().items()}

    @property
    def largest(self) -> tuple[str, int]:
        """The token with the largest id, and the id; without image tokens, for which Gemma 3 1B has no rows."""
        of_text = (each for each in self.vocabulary.items() if not (each[0] in self.added and _NO_TEXT.search(each[0])))
        return max(of_text, key=lambda entry: entry[1])

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Tokens that decoding leaves out."""
        flagged = {index for index, token in self._added_tokens().items() if token.special}
        if self.library is None:
            flagged |= {self.vocabulary[text] for text in self.special_tokens.values() if text in self.vocabulary}
        return frozenset(flagged)

    def _added_tokens(self) -> Mapping[int, Any]:
        if self.library is not None:
            return self.library.get_added_tokens_decoder()
        return self._python.added_tokens_decoder

    @property
    def _python(self) -> PreTrainedTokenizerBase:
        backend: Any = self.backend
        assert self.library is None, "only a tokenizer in Python gets here"
        return backend  # type: ignore[no-any-return]

    @cached_property
    def unknown(self) -> frozenset[int]:
        """Tokens that replace text which is not in the vocabulary."""
        model = _json(self.folder / "tokenizer.json").get("model", {})
        named = [self.special_tokens.get("unk_token"), model.get("unk_token")]
        ids = {self.vocabulary.get(text) for text in named if text is not None} | {model.get("unk_id")}
        return frozenset(index for index in ids if index is not None)

    def id_of(self, name: str) -> int | None:
        """Returns the id of a special token by name (`eos_token`); None if it does not exist in the vocabulary."""
        text = self.special_tokens.get(name)
        return None if text is None else self.vocabulary.get(text)

    def encode(self, text: str, *, special: bool) -> list[int]:
        """Returns the tokens of a text; with `special`, including those that the tokenizer adds around it."""
        if self.library is not None:
            try:
                with _OfTheLibrary():  # unlike `encode`, this lets other threads run
                    return self.library.encode_batch_fast([text], add_special_tokens=special)[0].ids
            except (_Damaged, UnicodeError, TypeError) as error:
                raise DataError(f"the tokenizer of {self.folder} cannot read {text[:80]!r}: {error}") from error
        return [int(token) for token in self._python(text, add_special_tokens=special)["input_ids"]]

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Returns the text of tokens."""
        ids = [int(token) for token in token_ids]
        if self.library is not None:
            return self.library.decode(ids, skip_special_tokens=skip_special_tokens)
        text = self._python.decode(ids, skip_special_tokens=skip_special_tokens)
        assert isinstance(text, str), "one sequence decodes to one text"
        return text

    def normalized(self, text: str) -> str:
        """Returns the text after the tokenizer's normalization: lower case, composed accents."""
        if self.library is None or self.library.normalizer is None:
            return text
        normalized: str = self.library.normalizer.normalize_str(text)
        return normalized

    def save_for_engine(self, folder: Path) -> Path:
        """Writes a folder that `AutoTokenizer` reads as this tokenizer, for any model family, and returns it.

        Its settings name no family's class and no code, so that no part of `tokenizer.json` is replaced. For a
        tokenizer in Python this is not possible: its own folder is returned.
        """
        if self.library is None:
            return self.folder
        self.library.save(str(folder / "tokenizer.json"))
        named = {name: text for name, text in self.special_tokens.items() if text in self.added}
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **named}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
        # A model type is required, and transformers replaces no tokenizer of this one.
        (folder / "config.json").write_text(json.dumps({"model_type": "gpt2"}), encoding="utf-8")
        return folder

    def difference(self, other: PreTrainedTokenizerBase) -> str | None:
        """Returns a sentence with the first difference to `other` on the probe texts; None if there is none."""
        for text in (*PROBES, *[token + PROBES[0] + token for token in list(self.added)[:8]]):
            ours = self.encode(text, special=False)
            theirs = [int(token) for token in other(text, add_special_tokens=False)["input_ids"]]
            if ours != theirs:
                return f"{text!r} is {ours} in tokenizer.json, and {theirs}"
            for skip in (True, False):
                ours_text, theirs_text = self.decode(ours, skip), other.decode(ours, skip_special_tokens=skip)
                if ours_text != theirs_text:
                    return f"the tokens {ours} are {ours_text!r} in tokenizer.json, and {theirs_text!r}"
        return None


def squeezed(text: str) -> str:
    """Returns the text without any space."""
    return "".join(text.split())


def load_tokenizer(path: str | Path, *, trust_remote_code: bool = False, key: str = "model.path") -> ModelTokenizer:
    """Returns the tokenizer of a model.

    Args:
        path: a folder or a hub name.
        trust_remote_code: let a tokenizer without tokenizer.json bring its own code.
        key: the key of the configuration, for errors.

    Raises:
        DataError: there is no tokenizer, or its files are damaged or contradict each other.
    """
    with _explained(path, key=key):
        folder = tokenizer_folder(path)
        if (folder / "tokenizer.json").is_file():
            return _from_json(folder)
        return _from_transformers(folder, trust_remote_code)


@contextmanager
def _explained(path: str | Path, *, key: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, LookupError, TypeError, AttributeError, ImportError, _Damaged) as error:
        if isinstance(error, DataError):
            raise
        said = " ".join(str(error).split()).rstrip(".")
        missing, hub = ("", "") if Path(path).exists() else ("no such folder, and ", " from the Hugging Face hub")
        raise DataError(
            f"{key}={path}: {missing}no tokenizer could be loaded{hub}: {said}; "
            "name a folder with tokenizer.json, or a model on the hub"
        ) from error


class _Damaged(Exception):
    """The `tokenizers` library refuses a file."""


class _OfTheLibrary:
    """Turns errors of the `tokenizers` library, whose class is only `Exception`, into `_Damaged`."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if kind is Exception:
            raise _Damaged(str(error)) from error


def _from_json(folder: Path) -> ModelTokenizer:
    from tokenizers import Tokenizer

    with _OfTheLibrary():
        library = Tokenizer.from_str((folder / "tokenizer.json").read_text(encoding="utf-8"))
    # A limit that the file keeps from its own training would silently cut prompts.
    library.no_truncation()
    library.no_padding()
    settings = _json(folder / "tokenizer_config.json")
    special = _special_tokens(settings, folder)
    _add_declared(library, settings, special, folder)
    limit = settings.get("model_max_length", settings.get("max_len"))
    max_tokens = int(limit) if isinstance(limit, int | float) and 0 < limit < NO_LIMIT else None
    return ModelTokenizer(folder, library, special, _templates(settings, folder), max_tokens)


def _from_transformers(folder: Path, trust_remote_code: bool) -> ModelTokenizer:
    # AutoTokenizer takes 6.5 s to import, because it pulls torch in.
    from transformers import AutoTokenizer, TokenizersBackend

    loaded = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    backend = loaded.backend_tokenizer if isinstance(loaded, TokenizersBackend) else loaded
    limit = loaded.model_max_length if loaded.model_max_length < NO_LIMIT else None
    templates = _templates(_json(folder / "tokenizer_config.json"), folder)
    if not templates and isinstance(loaded.chat_template, str):
        templates = {"default": loaded.chat_template}
    return ModelTokenizer(folder, backend, loaded.special_tokens_map, templates, limit)


def _json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file.name}: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file.name} holds {type(content).__name__}, not an object")
    return content


def _special_tokens(settings: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """Returns the texts of the named special tokens, as in transformers: older models have a file for them."""
    named = dict(settings)
    if isinstance(named.get("extra_special_tokens"), dict):
        named.update(named["extra_special_tokens"])
    if "added_tokens_decoder" not in settings:
        named.update(_json(folder / "special_tokens_map.json"))
    texts = {name: _content(value) for name, value in named.items() if name.endswith("_token")}
    return {name: text for name, text in texts.items() if text is not None}


def _content(token: Any) -> str | None:
    """Returns the text of a token that is written as text or as an object with its properties."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None


def _add_declared(
    library: tokenizers.Tokenizer, settings: Mapping[str, Any], special: Mapping[str, str], folder: Path
) -> None:
    """Adds tokens that tokenizer_config.json declares and tokenizer.json does not."""
    from tokenizers import AddedToken

    added = {token.content for token in library.get_added_tokens_decoder().values()}
    declared: dict[int, Any] = {int(index): token for index, token in settings.get("added_tokens_decoder", {}).items()}
    for index, token in sorted(declared.items()):
        text = _content(token)
        if text is None or text in added:
            continue
        is_special = bool(token.get("special", False)) if isinstance(token, dict) else True
        library.add_tokens([AddedToken(text, special=is_special, normalized=False)])
        added.add(text)
        if library.token_to_id(text) != index:
            raise DataError(
                f"{folder}: the token {text!r} has the id {index} in tokenizer_config.json, and would get "
                f"{library.token_to_id(text)} in tokenizer.json: the two files differ; copy both from one tokenizer"
            )
    # These tokens have a name, but are split in a text: a template could not write them.
    library.add_special_tokens([t for t in special.values() if t not in added and library.token_to_id(t) is not None])


def _templates(settings: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """Returns the chat templates by name: from files, else tokenizer_config.json, else the file of a processor."""
    of_processor = _json(folder / "chat_template.json").get("chat_template")
    named: dict[str, str] = {}
    for value in (of_processor, settings.get("chat_template")):
        if isinstance(value, str):
            named["default"] = value
        elif isinstance(value, dict):
            named.update({str(name): str(text) for name, text in value.items()})
        elif isinstance(value, list):
            named.update({str(entry["name"]): str(entry["template"]) for entry in value})
    for file in sorted(folder.glob("additional_chat_templates/*.jinja")):
        named[file.stem] = file.read_text(encoding="utf-8")
    if (folder / "chat_template.jinja").is_file():
        named["default"] = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    return named
