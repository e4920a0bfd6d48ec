"""`ray-rl migrate`: rewrites configurations of older versions for this one. Keeps the layout."""

from __future__ import annotations

import argparse
import difflib
import shutil
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
        "the changes. Layout and comments stay, except comments of removed keys. Files that a file extends must be "
        "rewritten, too.",
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
            lines = text.splitlines(), after.splitlines()
            print(*difflib.unified_diff(*lines, str(file), str(file), lineterm=""), sep="\n")
            if not arguments.dry_run:
                _replace(file, after.replace("\n", newline))
        question = doubt(text, str(file)) if arguments.version is None else None
        if question is not None:
            print(f"note: {question}")
    return 0


def _replace(file: Path, text: str) -> None:
    """Writes a file that keeps its mode; the old one stays until the new one is whole."""
    file = file.resolve()
    partial = file.with_name(f"{file.name}.partial")
    partial.write_bytes(text.encode())
    shutil.copymode(file, partial)
    partial.replace(file)
