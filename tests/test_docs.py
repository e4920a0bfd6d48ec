"""The pages of the project: links lead somewhere, files that are named exist, workflows call targets that exist."""

import re
import subprocess
import sys

import pytest
import yaml

from tests.test_architecture import ROOT

PAGES = sorted(
    page for page in ROOT.rglob("*.md") if not {".venv", "runs", "node_modules"} & set(page.relative_to(ROOT).parts)
)
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
NAMED = r"`((?:ray_rl|tests|configs|docker|launch|deploy|docs|examples)/[^`\s]*)`"


def without_code(text: str) -> str:
    """A page without its code blocks: what is in one is no link."""
    return re.sub(r"^ *```.*?^ *```", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(text: str) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ +(.+)$", without_code(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.replace("`", "")).strip().lower().replace(" ", "-") for heading in headings}


def dead_links(page, text: str) -> list[str]:
    """The links of a page to files or headings that are not there. Those to other hosts are not followed."""
    dead = []
    for link in re.findall(r"\]\(([^)\s]+)\)", without_code(text)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(text if target == page else target.read_text())):
            dead.append(link)
    return dead


def missing_paths(document: str) -> list[str]:
    """The paths that a document names in backticks and that are not there. `<...>` and `*` stand for any name."""
    named = re.findall(NAMED, document)
    return [path for path in named if not any(ROOT.glob(re.sub(r"<[^>]*>", "*", path).rstrip("/")))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_of_a_page_leads_somewhere(page):
    assert dead_links(page, page.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_names_only_files_that_exist(page):
    assert missing_paths(page.read_text(encoding="utf-8")) == []


def test_a_dead_link_and_an_invented_file_would_be_noticed():
    text = "# One `two`\n[a](#one-two) [b](#three) [c](nowhere.md) [d](docs/planning.md) [e](https://x.y)\n"
    assert dead_links(ROOT / "README.md", text) == ["#three", "nowhere.md"]
    document = "`ray_rl/types.py` `ray_rl/config/` `configs/<any>.yaml` `ray_rl/novel.py` `tests/unit/*/nothing.py`"
    assert missing_paths(document) == ["ray_rl/novel.py", "tests/unit/*/nothing.py"]


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda workflow: workflow.stem)
def test_a_workflow_calls_targets_of_the_makefile_and_every_job_has_a_limit(workflow):
    jobs = yaml.safe_load(workflow.read_text())["jobs"]
    runs = " ".join(step.get("run", "") for job in jobs.values() for step in job["steps"])
    turns = {turn for job in jobs.values() for turn in job.get("strategy", {}).get("matrix", {}).get("turn", [])}
    assert set(re.findall(r"\bmake ([a-z-]+)", runs)) | turns <= TARGETS
    assert all(job["timeout-minutes"] <= 180 for job in jobs.values())


CHANGES = """# Changelog

## [Unreleased]
- a

## [0.2.0] - 2026-11-26
- b

## [0.1.0] - 2026-11-22
- c
"""


def test_a_release_has_the_notes_of_its_version_and_another_tag_is_refused(tmp_path):
    for name, text in {
        ".github/release_notes.py": (ROOT / ".github" / "release_notes.py").read_text(),
        "ray_rl/__init__.py": '__version__ = "0.2.0"\n',
        "CHANGELOG.md": CHANGES,
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)

    def asked(tag):
        command = [sys.executable, str(tmp_path / ".github" / "release_notes.py"), tag]
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)

    done, refused = asked("v0.2.0"), asked("v0.3.0")
    assert (done.returncode, done.stdout) == (0, "- b\n")
    assert refused.returncode == 1
    assert refused.stderr == "the tag is v0.3.0; ray_rl/__init__.py says 0.2.0: change one of the two\n"


def test_the_citation_names_the_version_of_the_package():
    import ray_rl

    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == ray_rl.__version__
