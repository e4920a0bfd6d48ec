import pytest

from ray_rl.config.loading.yaml_text import YamlText
from ray_rl.errors import ConfigError

FLOW = "a: {b: 1, c: 2, d: {e: x}}  # flow\n"
BLOCK = """\
# head
a:
  b: 1  # first
  # before c
  c: 2
  d:
    e: x
# tail
z: 3
"""


def edited(text, edit):
    file = YamlText(text, "run.yaml")
    edit(file)
    file.tree()
    return file.text


@pytest.mark.parametrize(
    ("text", "key", "after"),
    [
        (FLOW, "a.b", "a: {c: 2, d: {e: x}}  # flow\n"),
        (FLOW, "a.d", "a: {b: 1, c: 2}  # flow\n"),
        (FLOW, "a.d.e", "a: {b: 1, c: 2, d: {}}  # flow\n"),
        ("a: {b: 1, # one\n    c: 2}\n", "a.c", "a: {b: 1, # one\n    }\n"),
        ("a: {b: 1, # one\n    c: 2}\n", "a.b", "a: { # one\n    c: 2}\n"),
        (BLOCK, "a.b", BLOCK.replace("  b: 1  # first\n", "  # first\n")),
        (
            "a:  # x\n  # y\n  b: |  # z\n    # text\n  c: '#'\n  d: e#f  # g\n# tail\nh: 1\n",
            "a",
            "# x\n# y\n# z\n# g\n# tail\nh: 1\n",
        ),
        ("a:\n  b: {c: 1, # x\n    d: 2}\n", "a.b", "a:\n  # x\n  {}\n"),
        ("a:\n  - b: 1  # x\n    c: 2\n", "a", "# x\n{}\n"),
        ("a: {b: { # x\n    c: 1}, # y\n  d: 2}\n", "a.b", "a: {# x\n     # y\n  d: 2}\n"),
        ("a: {b: 1, c: { # x\n    d: 1}}\n", "a.c", "a: {b: 1 # x\n    }\n"),
        (BLOCK, "a.d", BLOCK.replace("  d:\n    e: x\n", "")),
        (BLOCK, "a.d.e", BLOCK.replace("e: x", "{}")),
        (BLOCK, "z", BLOCK.replace("z: 3\n", "")),
        ("a: 1\nb: 2", "b", "a: 1\n"),
        ("a: |\n  text\n  more\n\nb: 2\n", "a", "\nb: 2\n"),
    ],
)
def test_an_entry_is_removed_and_the_rest_stays_as_it_was_written(text, key, after):
    assert edited(text, lambda file: file.remove(key)) == after


def test_an_entry_is_renamed_where_it_stands():
    assert edited(FLOW, lambda file: file.rename("a.d.e", "new")) == FLOW.replace("e: x", "new: x")
    assert edited(BLOCK, lambda file: file.rename("a.c", "new")) == BLOCK.replace("c: 2", "new: 2")


@pytest.mark.parametrize(
    ("text", "key", "value", "after"),
    [
        (FLOW, "a.c", [1, 2], FLOW.replace("c: 2", "c: [1, 2]")),
        (FLOW, "a.f", "true", FLOW.replace("{e: x}}", "{e: x}, f: 'true'}")),
        (FLOW, "a.f.g", None, FLOW.replace("{e: x}}", "{e: x}, f: {g: null}}")),
        ("a: {}\n", "a.b", 1, "a: {b: 1}\n"),
        ("a: {b: 1,}\n", "a.c", 2, "a: {b: 1, c: 2,}\n"),
        ("a:\n", "a.b", 1, "a: {b: 1}\n"),
        (BLOCK, "a.d.f", 0.5, BLOCK.replace("    e: x\n", "    e: x\n    f: 0.5\n")),
        (BLOCK, "a.f", {"g": "y"}, BLOCK.replace("    e: x\n", "    e: x\n  f: {g: y}\n")),
        (BLOCK, "a.d", 4, BLOCK.replace("    e: x\n", "    4\n")),
        (BLOCK, "y", 1, BLOCK + "y: 1\n"),
    ],
)
def test_a_value_is_set_and_the_rest_stays_as_it_was_written(text, key, value, after):
    changed = edited(text, lambda file: file.set(key, value))
    assert changed == after
    assert YamlText(changed, "run.yaml").tree().at(key).plain() == value


def test_a_new_entry_can_come_first():
    assert edited(FLOW, lambda file: file.set("a.kind", "k", first=True)) == FLOW.replace("{b", "{kind: k, b")
    assert edited(BLOCK, lambda file: file.set("a.kind", "k", first=True)) == BLOCK.replace("  b:", "  kind: k\n  b:")


@pytest.mark.parametrize(
    ("text", "after"),
    [
        ("a: [1]  # list\n", "a: [1, {k: v}]  # list\n"),
        ("a: []\n", "a: [{k: v}]\n"),
        ("a:\n- 1  # one\n# tail\nb: 2\n", "a:\n- 1  # one\n- {k: v}\n# tail\nb: 2\n"),
        ("a:\n  - b: 1\n    c: 2\n", "a:\n  - b: 1\n    c: 2\n  - {k: v}\n"),
        ("b: 2\n", "b: 2\na: [{k: v}]\n"),
    ],
)
def test_an_item_is_appended_to_a_list_in_its_style(text, after):
    assert edited(text, lambda file: file.append("a", {"k": "v"})) == after


def test_aliases_are_refused_as_their_text_stands_for_several_places():
    with pytest.raises(ConfigError, match=r"^run.yaml:2: the alias \*x cannot be changed; write its value out"):
        YamlText("a: &x {b: 1}\nc: *x\n", "run.yaml")
