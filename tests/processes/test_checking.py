import sys
import time

import pytest

from ray_rl.errors import ConfigError
from ray_rl.isolation.checking import check_function


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Writes a user's module and returns the import path of its function."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(text):
        (tmp_path / "users_module.py").write_text(text)
        return "users_module:judge"

    return write


GOOD = "def judge(completions, **columns):\n    return [0.0] * len(completions)\n"


def test_a_module_that_imports_passes_and_is_not_imported_here(module):
    check_function(module(GOOD), key="data.function")
    assert "users_module" not in sys.modules


def test_a_module_named_as_a_file_is_shown_without_its_ending(module):
    path = module(GOOD).replace(":", ".py:")
    with pytest.raises(
        ConfigError, match=r"^x=users_module.py:judge: write the module without \.py: users_module:judge$"
    ):
        check_function(path, key="x")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import sys\nsys.exit(0)\n" + GOOD, r"raised SystemExit: 0 at .*users_module\.py:2"),
        ("import os\nos._exit(0)\n" + GOOD, "ended its process with exit code 0"),
        ("raise KeyboardInterrupt\n" + GOOD, r"raised KeyboardInterrupt at .*users_module\.py:1"),
        ("\ndef judge(:\n", r"raised SyntaxError: invalid syntax at .*users_module\.py:2"),
        ("def judge():\nreturn 1\n", r"raised IndentationError: .* at .*users_module\.py:2"),
        ("\n\nopen('/no/such/file')\n" + GOOD, r"raised FileNotFoundError: .* at .*users_module\.py:3"),
        ("import no_such_library\n" + GOOD, r"no module named 'no_such_library' .*users_module\.py:1"),
        ("def judgement(): pass\n", "users_module has no 'judge'; it has judgement"),
        ("judge = 3\n", "a int, which cannot be called"),
        ("raise ValueError('x' * 50_000_000)\n" + GOOD, r"raised ValueError: xxx.*users_module\.py:1"),
    ],
)
def test_a_module_that_fails_names_the_key_and_its_own_file_and_line(module, text, message):
    with pytest.raises(ConfigError, match=rf"^rewards\[0\]\.function=users_module:judge: .*{message}") as raised:
        check_function(module(text), key="rewards[0].function")
    assert len(str(raised.value)) < 4_000


def test_an_import_that_hangs_is_ended_at_the_limit(module):
    started_s = time.monotonic()
    with pytest.raises(ConfigError, match=r"importing users_module:judge did not return within 2 s"):
        check_function(module("import time\ntime.sleep(60)\n" + GOOD), key="data.function", timeout_s=2)
    assert time.monotonic() - started_s < 20
