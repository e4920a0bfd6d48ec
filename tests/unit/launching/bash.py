"""What bash makes of a rendering: the words and the environment that a command gets."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

LIMIT_S = 20
WITNESS = """#!{python}
import json, os, sys
print(json.dumps([sys.argv[1:], dict(os.environ)]))
"""


@dataclass(frozen=True)
class Call:
    """A command as it was called."""

    words: list[str]
    environment: dict[str, str]


def called(command: str, text: str, folder: Path, *arguments: str, **environment: str) -> Call:
    """How a script for bash calls a command, in whose place a witness stands.

    Args:
        command: `ray` or `ray-rl`.
        text: of the script.
        folder: for the witness.
        arguments: of the script.
        environment: of the script, beside PATH.
    """
    witness = folder / "bin" / command
    witness.parent.mkdir(exist_ok=True)
    witness.write_text(WITNESS.format(python=sys.executable))
    witness.chmod(0o755)
    bash = shutil.which("bash")
    assert bash is not None
    path = f"{witness.parent}:{os.environ['PATH']}"
    done = subprocess.run(
        [bash, "-c", text, "script", *arguments],
        env={"PATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert done.returncode == 0, done.stderr
    words, seen = json.loads(done.stdout)
    return Call(words, seen)


def options_of(words: list[str]) -> tuple[dict[str, str], list[str]]:
    """`--name value` pairs before `--`, and the words behind it."""
    place = words.index("--")
    before = words[2:place]  # behind `job submit`
    return dict(zip(before[::2], before[1::2], strict=True)), words[place + 1 :]
