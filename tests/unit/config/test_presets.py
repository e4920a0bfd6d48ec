import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import ValidationError

from ray_rl.config.algorithm import Algorithm
from ray_rl.config.base import Config
from ray_rl.config.loading.load import dump_config, load_config
from ray_rl.config.loading.override_values import parse_value
from ray_rl.config.presets import PRESETS, Preset
from ray_rl.config.train import CriticConfig, RewardModelConfig

DOCUMENT = Path(__file__).parents[3] / "docs" / "algorithms.md"


def settings_of(preset: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """What a preset sets, flat: dotted keys, and values as YAML writes them."""
    for key, value in preset.items():
        match value:
            case Mapping() if value:
                yield from settings_of(value, f"{prefix}{key}.")
            case bool():
                yield f"{prefix}{key}", str(value).lower()
            case [low, high]:
                yield f"{prefix}{key}", f"[{low:g}, {high:g}]"
            case Mapping():
                yield f"{prefix}{key}", "{}"
            case _:
                yield f"{prefix}{key}", str(value)


def rendered() -> str:
    """The table of docs/algorithms.md: one row a preset."""
    rows = ["| `preset` | sets, below `algorithm` |", "|---|---|"]
    for name, preset in PRESETS.items():
        settings = ", ".join(f"`{key}: {value}`" for key, value in settings_of(preset))
        rows.append(f"| `{name}` | {settings} |")
    return "\n".join(rows)


def test_the_documents_table_is_what_the_presets_set():
    tables = re.findall(r"^\| `preset` \|.*?(?=\n\n)", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
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
for root, section in {"algorithm": Algorithm, "critic": CriticConfig, "reward": RewardModelConfig}.items():
    for key, default in defaults(section, root):
        DEFAULTS.setdefault(key, []).append(default)


class TestPresets:
    def test_every_name_has_a_preset(self):
        assert set(PRESETS) == set(get_args(Preset))

    @pytest.mark.parametrize("name", PRESETS)
    def test_a_preset_passes_the_rules_with_the_roles_that_it_needs(self, passes, name):
        needs = ["critic={}"] if name == "ppo" else []
        config = passes(f"algorithm.preset={name}", *needs)
        assert config.algorithm.preset == name

    @pytest.mark.parametrize("name", PRESETS)
    def test_a_preset_means_what_it_sets_written_out(self, name):
        assert Algorithm(preset=name).model_dump(exclude={"preset"}) == Algorithm.model_validate(
            PRESETS[name]
        ).model_dump(exclude={"preset"})

    @pytest.mark.parametrize("name", PRESETS)
    def test_a_preset_survives_dumping_and_loading(self, load, write, name):
        config = load(f"algorithm.preset={name}")
        assert load_config(write(dump_config(config), "dumped.yaml")) == config

    def test_dapo_is_resolved(self):
        dapo = Algorithm(preset="dapo")
        assert dapo.clip == (0.2, 0.28)
        assert dapo.reduction == "token_mean"
        assert dapo.dynamic_sampling is not None and dapo.dynamic_sampling.max_draws == 10
        assert dapo.shaping.overlong_share == 0.2
        assert dapo.kl.coefficient == 0.0

    def test_ppo_is_resolved(self):
        ppo = Algorithm(preset="ppo")
        assert (ppo.kind, ppo.group_size, ppo.update_epochs) == ("ppo", 1, 4)
        assert (ppo.advantage.kind, ppo.advantage.lam) == ("gae", 0.95)
        assert (ppo.kl.place, ppo.kl.estimator, ppo.kl.coefficient) == ("reward", "k1", 0.05)


class TestFilling:
    def test_what_the_user_writes_lies_over_the_preset(self):
        algorithm = Algorithm.model_validate({"preset": "dapo", "clip": [0.1, 0.1], "shaping": {"clip": 5}})
        assert algorithm.clip == (0.1, 0.1)
        assert (algorithm.shaping.clip, algorithm.shaping.overlong_share) == (5.0, 0.2)

    def test_one_key_of_a_section_leaves_the_others_to_the_preset(self):
        algorithm = Algorithm.model_validate({"preset": "ppo", "kl": {"coefficient": 0.01}, "advantage": {"lam": 1.0}})
        assert (algorithm.kl.coefficient, algorithm.kl.place, algorithm.kl.estimator) == (0.01, "reward", "k1")
        assert (algorithm.advantage.kind, algorithm.advantage.lam) == ("gae", 1.0)

    def test_a_default_that_is_written_out_counts(self):
        assert Algorithm.model_validate({"preset": "ppo", "group_size": 8}).group_size == 8

    def test_another_kind_replaces_the_whole_section(self):
        given = {"preset": "dr_grpo", "advantage": {"kind": "leave_one_out"}}
        assert Algorithm.model_validate(given).advantage.model_dump() == {
            "kind": "leave_one_out",
            "singleton": "zero",
            "whiten": None,
        }

    def test_the_same_kind_written_again_does_not(self):
        given = {"preset": "dr_grpo", "advantage": {"kind": "group", "ddof": 1}}
        assert Algorithm.model_validate(given).advantage.divide_by_std is False

    def test_null_takes_away_what_a_preset_adds(self):
        assert Algorithm.model_validate({"preset": "dapo", "dynamic_sampling": None}).dynamic_sampling is None

    def test_without_a_preset_nothing_is_filled_in(self):
        assert Algorithm.model_validate({}) == Algorithm()
        assert Algorithm().preset is None

    def test_an_unknown_preset_is_refused(self):
        with pytest.raises(ValidationError, match="preset"):
            Algorithm.model_validate({"preset": "grppo"})

    def test_presets_share_no_state(self):
        Algorithm.model_validate({"preset": "dapo", "shaping": {"overlong_share": 0.5}})
        assert Algorithm(preset="dapo").shaping.overlong_share == 0.2
