"""The language of the project: an engineer whose second language is English understands it at first reading.

The rules are about words, so that they stay simple: they find what made a reader translate, not bad prose in general.
"""

import ast
import io
import re
import tokenize
from collections.abc import Callable, Iterator
from functools import lru_cache

import pytest

from tests.test_architecture import PACKAGE, ROOT, Source, name_of, package_sources

FIRST_WORDS = {"Of", "For", "Beside", "Besides", "But", "Under", "With", "Without", "Nothing"}
"""Words with which no docstring starts: what follows is a fragment of a sentence."""

AVOIDED = re.compile(
    r"\b("
    + "|".join(
        [
            "under way",
            "goes on",
            "go on",
            "anew",
            "beside",
            "stood",
            "given up",
            "what is left",
            "asks nothing yet",
            "as once",
        ]
    )
    + r")\b",
    re.IGNORECASE,
)
"""Use: in flight, continues, again, next to (or: and, concurrently), was, abandoned, the rest."""

VERBS = frozenset(
    re.findall(
        r"\w+",
        """
        Accepts Accumulates Adds Aggregates Aligns Allows Appends Applies Asks Asserts Assigns Attaches Averages
        Awaits Balances Begins Binds Blocks Brings Broadcasts Builds Calls Cancels Casts Catches Centers Checks
        Chooses Clears Clips Closes Collects Combines Commits Compares Compiles Completes Computes Configures
        Connects Continues Converts Copies Corrects Counts Creates Cuts Deactivates Decides Declares Defines Deletes
        Delivers Dequantises Derives Describes Detaches Detects Digests Disables Distributes Divides Does Downloads
        Draws Drops Enables Encodes Ends Ensures Enters Escapes Estimates Evaluates Exchanges Exits Expands Expects
        Explains Exports Extends Extracts Fails Feeds Fetches Fills Filters Finds Finishes Fits Flushes Follows
        Forgets Formats Forwards Freezes Gathers Generates Gives Groups Guesses Handles Hands Hashes Hides Holds
        Ignores Imports Indents Informs Initialises Inserts Inspects Installs Interprets Interrupts Invokes Iterates
        Joins Judges Keeps Kills Launches Lays Learns Leaves Lets Limits Listens Lists Loads Locates Locks Logs
        Looks Makes Maps Marks Masks Matches Measures Meets Merges Migrates Moves Multiplies Names Normalises Notes
        Notices Notifies Observes Obtains Offers Opens Overrides Owns Packs Parses Passes Pauses Performs Permits
        Picks Places Plans Polls Predicts Prefers Prefixes Prepares Presents Preserves Prevents Prints Probes
        Produces Proposes Protects Proves Provides Publishes Pulls Pushes Puts Quotes Raises Reacts Reads Rebuilds
        Receives Recomputes Reconciles Recovers Redirects Reduces Refreshes Refuses Registers Rejects Releases
        Reloads Remembers Removes Renames Renders Reorders Repairs Repeats Replaces Replies Reports Reproduces
        Requests Requires Reserves Resets Resolves Restarts Restores Resumes Retries Returns Reveals Reverts
        Rewrites Rounds Routes Runs Saves Says Scales Scans Scatters Schedules Scores Searches Selects Sends
        Separates Serialises Serves Sets Settles Shares Shortens Shows Shuffles Signals Simplifies Simulates Skips
        Sorts Splits Spreads Starts Stops Stores Strips Submits Substitutes Subtracts Surrounds Suspends Swaps
        Switches Synchronises Takes Tells Terminates Tokenises Touches Tracks Trains Transforms Translates Treats
        Tries Trims Truncates Turns Unites Unlocks Unpacks Unwraps Updates Uploads Uses Validates Verifies Visits
        Waits Walks Warns Watches Weighs Whitens Widens Works Wraps Writes Yields Zeroes
        """,
    )
)
"""How the docstring of a function starts: third person, as in "Returns the rows". Add a verb that is missing."""

MAKERS = {"Makes", "Creates", "Opens", "Starts", "Loads", "Compiles", "Connects", "Reads", "Wraps", "Joins", "Builds"}
"""How the docstring of a constructor starts: it says what is made, not what does not happen yet."""

GENITIVE = re.compile(r"^ +\w+: (of|for|from|as|that|in|on|with|to|by|what is|at most,)\b")
"""An entry of `Args` that says no noun: "config: of the run" where "the configuration of the run" is meant."""


@lru_cache(maxsize=1)
def docstrings(source: Source) -> list[tuple[int, str, ast.AST | None]]:
    """Line, text and owner of every docstring; the owner of a field's string is None."""
    found: list[tuple[int, str, ast.AST | None]] = []
    for node in ast.walk(source.tree):
        body = getattr(node, "body", None)
        for index, statement in enumerate(body if isinstance(body, list) else []):
            if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
                text = statement.value.value
                if isinstance(text, str):
                    found.append((statement.lineno, text, node if index == 0 else None))
    return found


def docstrings_start_as_sentences_do(source: Source) -> Iterator[tuple[int, str]]:
    for line, text, _ in docstrings(source):
        word = text.split(maxsplit=1)[0] if text.strip() else ""
        if word.rstrip(".,:") in FIRST_WORDS:
            yield line, f"starts with {word!r}"


def functions_say_what_they_do(source: Source) -> Iterator[tuple[int, str]]:
    for line, text, owner in docstrings(source):
        if not isinstance(owner, ast.FunctionDef | ast.AsyncFunctionDef) or owner.name == "__init__":
            continue
        is_property = any("property" in ast.unparse(decorator) for decorator in owner.decorator_list)
        if not is_property and text.split()[0] not in VERBS:
            yield line, f"starts with {text.split()[0]!r}, which is not in VERBS"


def constructors_say_what_they_make(source: Source) -> Iterator[tuple[int, str]]:
    for line, text, owner in docstrings(source):
        is_constructor = isinstance(owner, ast.FunctionDef) and owner.name == "__init__"
        if is_constructor and text.split()[0] not in MAKERS:
            yield line, f"starts with {text.split()[0]!r}, which is not in MAKERS"


def arguments_are_described(source: Source) -> Iterator[tuple[int, str]]:
    for line, text, _ in docstrings(source):
        is_args = False
        for number, row in enumerate(text.splitlines()):
            if row.strip().endswith(":") and " " not in row.strip():
                is_args = row.strip() == "Args:"
            elif is_args and GENITIVE.match(row):
                yield line + number, f"an argument described as {row.strip()!r}"


TEXTS = (tokenize.STRING, tokenize.COMMENT, getattr(tokenize, "FSTRING_MIDDLE", None))
"""Types of tokens with words for people. Since Python 3.12, an f-string is several tokens."""


def avoided_words_are_avoided(source: Source) -> Iterator[tuple[int, str]]:
    """In docstrings, comments and messages."""
    if not AVOIDED.search(source.text):
        return
    for token in tokenize.generate_tokens(io.StringIO(source.text).readline):
        if token.type in TEXTS:
            for number, row in enumerate(token.string.splitlines()):
                for phrase in AVOIDED.findall(row):
                    yield token.start[0] + number, f"says {phrase!r}"


def avoided_words_in(text: str) -> Iterator[tuple[int, str]]:
    """In a whole text: every word of a script is code, a comment or a message, and code says none of them."""
    for line, row in enumerate(text.splitlines(), start=1):
        for phrase in AVOIDED.findall(row):
            yield line, f"says {phrase!r}"


Rule = Callable[[Source], Iterator[tuple[int, str]]]

RULES: dict[Rule, tuple[list[tuple[str, int]], list[str]]] = {
    docstrings_start_as_sentences_do: (
        [
            ('"""Of the child; None when none runs."""', 1),
            ('x = 1\n"""For importing a module."""', 2),
            ('class A:\n    x: int\n    """Under bfloat16, 2."""', 3),
            ('def f():\n    """Nothing yet."""', 2),
        ],
        ['"""The process id of the child."""\nx = "Of"', 'class A:\n    """One worker."""'],
    ),
    functions_say_what_they_do: (
        [
            ('def f():\n    """The rows of a batch."""', 2),
            ('class A:\n    async def f(self):\n        """Twice is as once."""', 3),
        ],
        [
            'def f():\n    """Returns the rows of a batch."""',
            'class A:\n    @property\n    def rows(self):\n        """The rows of a batch."""',
            'class A:\n    """The rows of a batch."""\n    def __init__(self):\n        """Makes no copy."""',
        ],
    ),
    constructors_say_what_they_make: (
        [('class A:\n    def __init__(self):\n        """Asks nothing yet."""', 3)],
        ['class A:\n    def __init__(self):\n        """Makes a router without engines."""'],
    ),
    arguments_are_described: (
        [
            ('def f(config):\n    """Returns the plan.\n\n    Args:\n        config: of the run.\n    """', 5),
            ('def f(a):\n    """Returns it.\n\n    Args:\n        a: the a.\n        n: for messages.\n    """', 6),
        ],
        [
            'def f(config):\n    """Returns it.\n\n    Args:\n        config: the configuration of the run.\n    """',
            'def f(a):\n    """Returns it.\n\n    Args:\n        a: the a.\n\n    Raises:\n        A: for a.\n    """',
        ],
    ),
    avoided_words_are_avoided: (
        [
            ("x = 1  # the run goes on", 1),
            ('"""A docstring.\n\nRequests under way.\n"""', 3),
            ('raise ValueError(f"{x} was given up")', 1),
        ],
        ["goes_on = 1  # the run continues"],
    ),
}
"""Every rule, with texts that break it (and the line of the offence) and texts that keep it."""

OFFENCES = [(rule, *offence) for rule, (offences, _) in RULES.items() for offence in offences]
INNOCENTS = [(rule, innocent) for rule, (_, innocents) in RULES.items() for innocent in innocents]


def test_the_package_keeps_the_language():
    offences = [
        f"{each.path}:{line}: {text}" for each in package_sources() for rule in RULES for line, text in rule(each)
    ]
    assert not offences, "\n" + "\n".join(offences)


def test_the_scripts_avoid_the_same_words():
    folders = [ROOT / PACKAGE, ROOT / "launch", ROOT / "docker", ROOT / ".ci"]
    scripts = sorted(file for folder in folders for file in folder.rglob("*.sh"))
    assert len(scripts) >= len(folders)
    offences = [
        f"{file.relative_to(ROOT)}:{line}: {text}"
        for file in [*scripts, ROOT / ".ci/run"]
        for line, text in avoided_words_in(file.read_text(encoding="utf-8"))
    ]
    assert not offences, "\n" + "\n".join(offences)


def test_an_avoided_word_of_a_script_is_found_on_its_line():
    script = 'say "submit it again"\nsay "submit it anew"  # and it goes on\n'
    assert list(avoided_words_in(script)) == [(2, "says 'anew'"), (2, "says 'goes on'")]


@pytest.mark.parametrize(("rule", "text", "line"), OFFENCES, ids=name_of)
def test_the_rule_finds_an_offence_on_its_line(rule: Rule, text: str, line: int):
    assert [found for found, _ in rule(Source(f"{PACKAGE}/data/a.py", text))] == [line]


@pytest.mark.parametrize(("rule", "text"), INNOCENTS, ids=name_of)
def test_the_rule_lets_the_innocent_pass(rule: Rule, text: str):
    assert list(rule(Source(f"{PACKAGE}/data/a.py", text))) == []
