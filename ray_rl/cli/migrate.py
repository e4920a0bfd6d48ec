"""`ray-rl migrate`: rewrites configurations of older versions for this one. Keeps the layout."""

from __future__ import annotations

import argparse
import difflib
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ray_rl.cli.arguments import Commands


def add_to(commands: Commands) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "migrate",
        help="rewrite a configuration of an older version for this one",
        description="Renames the keys of older versions in YAML files, also in config.yaml of run folders, and prints "
        "the changes, without secrets. Layout and comments stay; those of a removed key are put above the next key. "
        "Files that a file extends must be rewritten, too.",
        epilog="example: ray-rl migrate --dry-run my_run.yaml",
    )
    parser.add_argument("files", metavar="FILE", nargs="+", type=Path, help="YAML file")
    parser.add_argument("--dry-run", action="store_true", help="only print what would change")
    parser.add_argument(
        "--from",
        dest="version",
        choices=["0.1"],
        help="version for which the files were written: adds its defaults where those of this version differ. Without "
        "this option, they are added only to files that are certainly older",
    )
    parser.set_defaults(command=migrate)


def migrate(arguments: argparse.Namespace) -> int:
    """Rewrites the files, or shows how.

    Raises:
        ConfigError: a file is no YAML, or cannot be rewritten in place; the files before it are rewritten.
    """
    from ray_rl.config.loading.old_keys import doubt, migrated
    from ray_rl.config.loading.yaml_tree import read_text

    for file in arguments.files:
        written = read_text(file)
        newline = "\r\n" if "\r\n" in written else "\n"
        text = written.replace("\r\n", "\n")
        after = migrated(text, str(file), is_from_0_1=arguments.version is not None)
        if after == text:
            print(f"{file}: nothing to change")
        else:
            print(_changes(text, after, str(file)))
            if not arguments.dry_run:
                _replace(file, after.replace("\n", newline))
        question = doubt(text, str(file)) if arguments.version is None else None
        if question is not None:
            print(f"note: {question}")
    return 0


def _changes(before: str, after: str, name: str) -> str:
    """Returns the difference of two texts of a file, without secrets."""
    from ray_rl.config.loading.redact import hide, secrets_of
    from ray_rl.config.loading.yaml_tree import parse

    secrets = secrets_of(parse(before, name).plain())
    lines = {line.strip() for secret in secrets for line in secret.splitlines()}
    changes = difflib.unified_diff(before.splitlines(), after.splitlines(), name, name, lineterm="")
    return hide("\n".join(changes), secrets | lines)


def _replace(file: Path, text: str) -> None:
    """Writes a file that keeps its mode; the old one stays until the new one is whole."""
    file = file.resolve()
    # Only its owner can read a new file of mkstemp, which has the same secrets.
    descriptor, name = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
    try:
        with os.fdopen(descriptor, "wb") as partial:
            partial.write(text.encode())
            partial.flush()
            os.fsync(partial.fileno())
        shutil.copymode(file, name)
        os.replace(name, file)
    finally:
        with suppress(FileNotFoundError):  # after a replacement it has the name of the file
            os.unlink(name)
