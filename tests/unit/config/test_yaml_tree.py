import time
from pathlib import Path

import pytest

from ray_rl.config.loading.override_values import parse_value
from ray_rl.config.loading.yaml_tree import read_yaml
from ray_rl.errors import ConfigError


def error_of(path):
    with pytest.raises(ConfigError) as caught:
        read_yaml(path)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("1E5", 1e5),
        ("-1.5e+3", -1500.0),
        (".5", 0.5),
        ("2.", 2.0),
        ("-.inf", float("-inf")),
        ("10_000", 10_000),
        ("0x10", 16),
        ("0o17", 15),
        ("-3", -3),
        ("007", "007"),
        ("12:30", "12:30"),
        ("no", "no"),
        ("2026-11-22", "2026-11-22"),
        ("True", True),
        ("", None),
        ("~", None),
        ("'1'", "1"),
        ("!!str 1", "1"),
        ("[1, a]", [1, "a"]),
        ("{a: {b: 1}}", {"a": {"b": 1}}),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text, value):
    assert parse_value(text, "test").plain() == value


def test_every_value_knows_the_line_of_its_key(write):
    tree = read_yaml(write("# comment\nrun:\n  name: a\n  list:\n    - 1\n    - 2\n"))
    run = tree.child("run")
    assert run.where == "run.yaml:2"
    assert run.child("name").where == "run.yaml:3"
    assert [run.child("list").child(index).where for index in (0, 1)] == ["run.yaml:5", "run.yaml:6"]


def test_an_anchor_may_be_used_again(write):
    assert read_yaml(write("a: &x [1]\nb: *x\n")).plain() == {"a": [1], "b": [1]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", "run.yaml:3: the key 'a' is written twice, first at run.yaml:1; remove one"),
        ("- 1\n", "run.yaml:1: the file is a list; write a mapping of sections such as `run:` and `model:`"),
        ("\nabc\n", "run.yaml:2: the file is the single value 'abc'; write a mapping of sections such as `run:` and"),
        ("# nothing\n", "run.yaml:1: the file is empty; write a mapping of sections such as `run:` and `model:`"),
        ("a: 1\n b: 2\n", "run.yaml:2: not valid YAML (mapping values are not allowed here); check the colons, "),
        ("a: [1\n", "run.yaml:2: not valid YAML (while parsing a flow sequence, "),
        (
            "a: *.jsonl\n",
            "run.yaml:1: not valid YAML (while scanning an alias, expected alphabetic or numeric character",
        ),
        (
            "a: *x\n",
            "run.yaml:1: not valid YAML (found undefined alias 'x': text that begins with * must be in quotes); ",
        ),
        ("a: 1\n---\nb: 2\n", "run.yaml:2: not valid YAML (expected a single document in the stream, "),
        ("1: a\n", "run.yaml:1: the key '1' is not text; put it in quotes"),
        ("? [a]\n: 1\n", "run.yaml:1: a key is a list; keys are text"),
        ("a: !!python/name:os.system\n", "run.yaml:1: the tag !!python/name:os.system is not supported; write plain"),
        ("a: !!set {x}\n", "run.yaml:1: the tag !!set is not supported; write a plain mapping or list"),
        ("a: !!int x\n", "run.yaml:1: 'x' is not a number; correct it"),
        ("a: &x\n  b: *x\n", "run.yaml:2: the anchor contains itself; write the value out"),
        ("a: 1\nb: \x07\n", "run.yaml:2: character 7 is not allowed in YAML; remove it"),
    ],
)
def test_wrong_yaml_is_an_error_with_its_line(write, text, message):
    assert error_of(write(text)).startswith(message)


def test_a_missing_file_is_an_error(write, tmp_path):
    assert error_of(tmp_path / "no.yaml") == f"{tmp_path}/no.yaml: no such file; give the path of a YAML file"


def test_a_folder_is_an_error(tmp_path):
    assert error_of(tmp_path) == f"{tmp_path}: is a folder; give the path of a YAML file"


def test_bytes_that_are_not_utf8_are_an_error(tmp_path):
    path = tmp_path / "latin.yaml"
    path.write_bytes("a: \xe4".encode("latin-1"))
    assert error_of(path) == f"{path}: byte 3 is not UTF-8; save the file as UTF-8 text"


LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LAUGHS, "with its aliases written out, the file has more than 20000 values"),
        (LAUGHS.replace("[", "{k: [").replace("]", "]}"), "with its aliases written out, the file has more than 20000"),
        (
            "a: &a " + "x" * 500_000 + "\nb: [" + "*a, " * 5000 + "]\n",
            "4 million characters, which no configuration has",
        ),
        ("a: " + "[" * 5000, "a configuration has at most 50 levels"),
        ("a: " + "{a: " * 5000, "a configuration has at most 50 levels"),
        ("".join("  " * n + "a:\n" for n in range(400)), "a configuration has at most 50 levels"),
        ("a: [" + "1, " * 30_000 + "1]", "a configuration has at most 20000 values"),
        ("a: " + "x" * 2_000_000, "more than 1 MiB, and no configuration is so large"),
        ("a: " + "9" * 5000, "a number of 5000 digits; whole numbers have at most 300"),
        ("a:\n\tb: 1\n", "YAML indents by spaces"),
        ("a: \x00", "character 0 is not allowed in YAML; remove it"),
        ("a: 1\na: 2", "the key 'a' is written twice"),
    ],
    ids=range(12),
)
def test_what_would_cost_memory_or_hours_is_refused_at_once_in_one_sentence(write, text, message):
    path = write(text)
    started = time.process_time()
    said = error_of(path)
    assert time.process_time() - started < 5
    assert message in said
    assert len(said) < 300 and "\n" not in said


def test_a_stream_without_an_end_is_read_no_further_than_the_limit():
    assert "character 0 is not allowed" in error_of(Path("/dev/zero")) or "more than 1 MiB" in error_of(
        Path("/dev/zero")
    )
