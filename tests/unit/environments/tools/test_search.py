import json
import math
from pathlib import Path
from typing import Any

import pytest

from ray_rl.config.environment import SearchTool, ToolsEnvironment
from ray_rl.environments.base import Reply
from ray_rl.environments.tools.building import ToolEnvironments
from ray_rl.environments.tools.search import K1, B, Index, Passage, passages
from ray_rl.errors import ConfigError, DataError
from ray_rl.types import ToolCall

TEXTS = ["the cat sat on the mat", "the dog chased the cat", "birds sing", "Cat cat CAT!"]


def index() -> Index:
    return Index(Passage("", text) for text in TEXTS)


def slow_scores(query: list[str]) -> list[float]:
    """BM25 from its formula, over all texts and words."""
    documents = [text.lower().replace("!", "").split() for text in TEXTS]
    mean = sum(map(len, documents)) / len(documents)
    scores = []
    for words in documents:
        score = 0.0
        for word in query:
            having = sum(word in other for other in documents)
            idf = math.log(1 + (len(documents) - having + 0.5) / (having + 0.5))
            count = words.count(word)
            score += idf * count * (K1 + 1) / (count + K1 * (1 - B + B * len(words) / mean))
        scores.append(score)
    return scores


@pytest.mark.parametrize("query", ["cat", "the cat", "dog birds", "mat the", "sing"])
def test_the_order_is_that_of_the_formula(query: str):
    scores = slow_scores(query.split())
    order = sorted((number for number, score in enumerate(scores) if score > 0), key=lambda n: -scores[n])
    assert [passage.text for passage in index().best(query, 4)] == [TEXTS[number] for number in order]


def test_the_case_and_repetition_of_words_of_the_query_do_not_matter():
    assert index().best("CAT, cat? the", 4) == index().best("cat the", 4)


def test_nothing_is_found_for_unknown_words():
    assert index().best("zebra", 3) == [] == index().best("", 3) == index().best("\x00 *", 3)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep/oslo.txt").write_text("Oslo is the capital of Norway.")
    (tmp_path / "bergen.md").write_text("Bergen is rainy.\n\n" + "It rains. " * 30)
    (tmp_path / "image.png").write_bytes(b"\xff")
    return tmp_path


def found(path: Path, **settings: Any) -> list[Passage]:
    return list(passages(SearchTool(path=str(path), **settings)))


def test_a_folder_is_read_in_the_order_of_its_files(folder: Path):
    assert [passage.title for passage in found(folder)] == ["bergen.md", "deep/oslo.txt"]


def test_long_texts_are_divided_between_words(folder: Path):
    parts = [passage.text for passage in found(folder, passage_characters=50) if passage.title == "bergen.md"]
    assert parts[0] == "Bergen is rainy.\n\nIt rains. It rains. It rains."
    assert max(map(len, parts)) <= 50 and len(parts) > 6
    assert " ".join(parts).split() == (folder / "bergen.md").read_text().split()
    (folder / "long.txt").write_text("x" * 120)
    assert [len(each.text) for each in found(folder, passage_characters=50) if each.title == "long.txt"] == [50, 50, 20]


def test_lines_of_json_are_read(tmp_path: Path):
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "one", "name": "A"}\n\n{"text": "two", "name": "B"}\n')
    assert found(file) == [Passage("1", "one"), Passage("3", "two")]
    assert found(file, title_column="name", text_column="text")[1] == Passage("B", "two")


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{", r"a\.jsonl:1: not a line of JSON"),
        ('{"body": "x"}', r"a\.jsonl:1: no text under the key 'text'; it has body"),
        ("[1]", "it has no keys"),
        ("", "a file without texts"),
        ('{"text": " "}', "a file without texts"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, line: str, why: str):
    (tmp_path / "a.jsonl").write_text(line)
    with pytest.raises(DataError, match=why):
        found(tmp_path / "a.jsonl")


def test_a_wrong_path_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match="a folder without texts"):
        found(tmp_path)
    with pytest.raises(DataError, match="no such file or folder"):
        found(tmp_path / "no")
    (tmp_path / "a.txt").write_bytes(b"\xff")
    with pytest.raises(DataError, match=r"a\.txt cannot be read as UTF-8"):
        found(tmp_path)


async def test_an_environment_with_a_search_is_made_from_its_configuration(folder: Path):
    settings = ToolsEnvironment.model_validate(
        {"sources": [{"kind": "search", "path": str(folder), "name": "look", "results": 1}]}
    )
    environments = ToolEnvironments(settings)
    (schema,) = await environments.schemas()
    assert schema["function"]["name"] == "look"
    environment = environments.make()
    await environment.reset({}, 0)
    calls = tuple(ToolCall("look", {"query": query}) for query in ("capital Norway", "zebra"))
    first, second = (await environment.step(Reply("", calls))).messages
    assert json.loads(first.content) == [{"title": "deep/oslo.txt", "text": "Oslo is the capital of Norway."}]
    assert second.content == "Nothing found. Try other words."
    await environment.close()
    await environments.close()


async def test_functions_classes_and_the_reward_are_imported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    (tmp_path / "own_tools.py").write_text(
        "def add(a: int, b: int) -> int:\n    'Adds.'\n    return a + b\n"
        "class Box:\n    def open(self) -> str:\n        'Opens.'\n        return 'empty'\n"
        "def score(episode):\n    return len(episode.replies)\n"
    )
    monkeypatch.chdir(tmp_path)
    settings = ToolsEnvironment(tools=["own_tools:add", "own_tools:Box"], reward="own_tools:score")
    environment = ToolEnvironments(settings).make()
    await environment.reset({}, 0)
    calls = (ToolCall("open", {}), ToolCall("add", {"a": 1, "b": 1}))
    assert [message.content for message in (await environment.step(Reply("", calls))).messages] == ["empty", "2"]
    assert (await environment.step(Reply("done"))).reward == 2.0


def test_an_environment_without_tools_is_refused():
    with pytest.raises(ConfigError, match="no tools"):
        ToolEnvironments(ToolsEnvironment())
