"""Prints the section of a release in CHANGELOG.md: `python .github/release_notes.py v0.2.0`.

Fails if the tag is not the version of the package, or if the CHANGELOG has no section for it.
"""

import re
import sys
from pathlib import Path


def notes(tag: str, root: Path) -> str:
    """Returns the text under the heading of the tag's version, up to the next release."""
    version = re.search(r'^__version__ = "(.+)"$', (root / "ray_rl" / "__init__.py").read_text(), re.MULTILINE)
    if version is None or tag != f"v{version[1]}":
        raise SystemExit(f"the tag is {tag}; ray_rl/__init__.py says {version and version[1]}: change one of the two")
    sections = re.split(r"^## ", (root / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    found = [section for section in sections if section.startswith((f"[{version[1]}]", f"{version[1]} "))]
    if len(found) != 1:
        raise SystemExit(
            f"CHANGELOG.md has {len(found)} sections for {version[1]}; it needs one: ## [{version[1]}] - date"
        )
    return found[0].partition("\n")[2].strip() + "\n"


if __name__ == "__main__":
    sys.stdout.write(notes(sys.argv[1], Path(__file__).resolve().parent.parent))
