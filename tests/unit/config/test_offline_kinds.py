"""docs/offline.md says what the classes say."""

import re
from pathlib import Path

from ray_rl.config.loading.schema import sections_of
from ray_rl.config.offline import OfflineAlgorithm, OfflineKinds

DOCUMENT = (Path(__file__).parents[3] / "docs" / "offline.md").read_text(encoding="utf-8")
KINDS = sections_of(OfflineKinds)


def written(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case "\n":
            return '"\\n"'
        case _:
            return str(value)


def rendered() -> str:
    """The table of defaults: one row a kind."""
    rows = ["| `kind` | defaults: `train`, then `algorithm` |", "|---|---|"]
    for name, kind in KINDS.items():
        assert issubclass(kind, OfflineAlgorithm)
        names = [field for field in kind.model_fields if field != "kind"]
        settings = ", ".join(f"`{field}: {written(kind.model_fields[field].default)}`" for field in names)
        rows.append(f"| `{name}` | `learning_rate: {kind.learning_rate:g}`; {settings} |")
    return "\n".join(rows)


def test_the_table_of_defaults_is_what_the_kinds_set():
    tables = re.findall(r"^\| `kind` \| defaults.*?(?=\n\n)", DOCUMENT, re.DOTALL | re.MULTILINE)
    assert tables == [rendered()], "put this into docs/offline.md:\n" + rendered()


def test_every_kind_has_a_row_with_its_formula():
    assert all(re.search(rf"^\| `{name}` \| .* \| .*\d{{4}}\.\d{{5}}.* \|$", DOCUMENT, re.MULTILINE) for name in KINDS)


def test_every_field_that_the_page_names_exists():
    fields = {field for kind in KINDS.values() for field in kind.model_fields} | {"likelihood.over"}
    named = re.findall(r"`algorithm\.([a-z_.]+)", DOCUMENT)
    assert len(named) > 5
    assert set(named) <= fields | {"kind"}
