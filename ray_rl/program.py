"""How the user calls this program: messages with a command to run next begin it in the same way."""

import shlex
import shutil
import sys
from pathlib import Path

NAME = "ray-rl"


def program() -> str:
    """Returns the first word of a command line: `ray-rl`, or the path that was typed if PATH does not find the same.

    Launchers and tests call this program in other ways; then it is `ray-rl`.
    """
    typed = Path(sys.argv[0])
    if typed.name != NAME or not typed.is_file():
        return NAME
    found = shutil.which(NAME)
    return NAME if found is not None and typed.samefile(found) else shlex.quote(sys.argv[0])
