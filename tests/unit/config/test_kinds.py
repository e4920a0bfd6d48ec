import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

from ray_rl.config.algorithm import Algorithm
from ray_rl.config.base import Config
from ray_rl.config.loading.load import dump_config, load_config
from ray_rl.config.loading.override_values import parse_value
from ray_rl.config.loading.schema import sections_of
from ray_rl.config.online import (
    DapoAlgorithm,
    DrGrpoAlgorithm,
    GrpoAlgorithm,
    OnlineKinds,
    PpoAlgorithm,
)
from ray_rl.config.train import CriticConfig

DOCUMENT = Path(__file__).parents[3] / "docs" / "algorithms.md"
KINDS = sections_of(OnlineKinds)


def settings_of(section: Config, prefix: str = "") -> Iterator[tuple[str, str]]:
    """What the class of a default sets, flat: dotted keys, and values as YAML writes them."""
    written = [name for name in type(section).model_fields if name == "kind" or name in section.model_fields_set]
    if not written:
        yield prefix.removesuffix("."), "{}"
    for name in written:
        match vars(section)[name]:
            case Config() as inner:
                yield from settings_of(inner, f"{prefix}{name}.")
            case bool() as value:
                yield f"{prefix}{name}", str(value).lower()
            case (low, high):
                yield f"{prefix}{name}", f"[{low:g}, {high:g}]"
            case value:
                yield f"{prefix}{name}", str(value)


def defaults_of(kind: type[Config]) -> Iterator[tuple[str, str]]:
    """The settings that a kind's class itself declares."""
    for name in kind.__annotations__:
        if name != "kind":
            own = Algorithm.model_construct({name}, **{name: kind.model_fields[name].default})
            yield from (pair for pair in settings_of(own) if pair[0] != "kind")


def rendered() -> str:
    """The table of docs/algorithms.md: one row a kind."""
    rows = ["| `kind` | sets, below `algorithm` |", "|---|---|"]
    for name, kind in KINDS.items():
        settings = ", ".join(f"`{key}: {value}`" for key, value in defaults_of(kind))
        rows.append(f"| `{name}` | {settings} |")
    return "\n".join(rows)


def test_the_documents_table_is_what_the_kinds_set():
    tables = re.findall(
        r"^\| `kind` \| sets.*?(?=\n\n)", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )
    assert tables == [rendered()], "put this into docs/algorithms.md:\n" + rendered()


def named_fields() -> list[tuple[str, str]]:
    """Fields that the document names in backticks, such as `algorithm.kl.place`, with the value given after ":"."""
    text = DOCUMENT.read_text(encoding="utf-8")
    named = re.findall(r"`((?:algorithm|critic|reward)\.[\w.]+)(?:: ([^`]*))?`", text)
    assert named, "the document names fields"
    return named


def test_every_field_that_the_document_names_exists():
    assert {key for key, _ in named_fields() if key not in DEFAULTS} == set()


def test_every_default_that_the_document_states_is_the_default_of_its_field():
    stated = [(key, parse_value(value, "docs").plain()) for key, value in named_fields() if value]
    assert len(stated) > 10
    assert [(key, value) for key, value in stated if value not in DEFAULTS[key]] == []


def defaults(annotation: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    """Every dotted key of a section, of all its kinds, with its default."""
    if isinstance(annotation, type) and issubclass(annotation, Config):
        for name, field in annotation.model_fields.items():
            yield f"{prefix}.{name}", field.default
            yield from defaults(field.annotation, f"{prefix}.{name}")
    else:
        for member in get_args(annotation):
            yield from defaults(member, prefix)


DEFAULTS: dict[str, list[Any]] = {}
for root, section in {"algorithm": Algorithm, "critic": CriticConfig}.items():
    for key, default in defaults(section, root):
        DEFAULTS.setdefault(key, []).append(default)


class TestKinds:
    def test_every_kind_names_its_paper(self):
        assert [name for name, kind in KINDS.items() if not re.search(r"arXiv:\d{4}\.\d{5}", kind.__doc__ or "")] == []

    @pytest.mark.parametrize("name", KINDS)
    def test_a_kind_alone_passes_the_rules(self, passes, name):
        assert passes(f"algorithm={{kind: {name}}}").algorithm == KINDS[name]()

    @pytest.mark.parametrize("name", KINDS)
    def test_a_kind_survives_dumping_and_loading(self, load, write, name):
        config = load(f"algorithm={{kind: {name}}}")
        assert load_config(write(dump_config(config), "dumped.yaml")) == config

    def test_grpo_is_that_of_the_paper(self):
        grpo = GrpoAlgorithm()
        assert (grpo.reduction, grpo.group_size, grpo.advantage.divide_by_std) == ("sequence_mean", 8, True)
        assert (grpo.kl.coefficient, grpo.kl.place, grpo.kl.estimator) == (0.04, "loss", "k3")

    def test_dapo_is_that_of_the_paper(self):
        dapo = DapoAlgorithm()
        assert dapo.clip == (0.2, 0.28)
        assert dapo.reduction == "token_mean"
        assert dapo.dynamic_sampling is not None and dapo.dynamic_sampling.max_draws == 10
        assert dapo.shaping.overlong_share == 0.2
        assert dapo.kl.coefficient == 0.0

    def test_ppo_is_that_of_language_models(self):
        ppo = PpoAlgorithm()
        assert (ppo.group_size, ppo.update_epochs) == (1, 4)
        assert (ppo.advantage.kind, ppo.advantage.lam) == ("gae", 0.95)
        assert (ppo.kl.place, ppo.kl.estimator, ppo.kl.coefficient) == ("reward", "k1", 0.05)


class TestSectionsGivenInPart:
    def test_one_key_of_a_section_leaves_the_others_at_the_defaults_of_the_kind(self):
        ppo = PpoAlgorithm.model_validate({"kl": {"coefficient": 0.01}, "advantage": {"lam": 1.0}})
        assert (ppo.kl.coefficient, ppo.kl.place, ppo.kl.estimator) == (0.01, "reward", "k1")
        assert (ppo.advantage.kind, ppo.advantage.lam) == ("gae", 1.0)
        dapo = DapoAlgorithm.model_validate({"shaping": {"clip": 5}})
        assert (dapo.shaping.clip, dapo.shaping.overlong_share) == (5.0, 0.2)

    def test_another_kind_replaces_the_whole_section(self):
        given = {"advantage": {"kind": "leave_one_out"}}
        assert DrGrpoAlgorithm.model_validate(given).advantage.model_dump() == {
            "kind": "leave_one_out",
            "singleton": "zero",
            "whiten": None,
        }

    def test_the_same_kind_written_again_does_not(self):
        given = {"advantage": {"kind": "group", "ddof": 1}}
        assert DrGrpoAlgorithm.model_validate(given).advantage.divide_by_std is False

    def test_null_takes_away_what_a_kind_adds(self):
        assert DapoAlgorithm.model_validate({"dynamic_sampling": None}).dynamic_sampling is None

    def test_a_file_that_extends_another_changes_the_kind_alone(self, write, load):
        load()
        write("extends: run.yaml\nalgorithm: {kind: dr_grpo}\n", "other.yaml")
        algorithm = load_config("other.yaml", ["algorithm.group_size=4"]).algorithm
        assert (algorithm.kind, algorithm.group_size, algorithm.reduction) == ("dr_grpo", 4, "token_mean")
