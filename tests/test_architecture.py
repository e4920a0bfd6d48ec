"""The rules of the package that a machine can check. CONTRIBUTING.md gives the reasons.

A rule reads one source file and yields its violations as `line, message`. Every rule is itself tested on a source that
offends, so that it is known to be able to fail.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = "ray_rl"

LAYERS = (
    ("types", "errors", "exit_codes", "program", "sizes", "concurrency", "imports", "catalog"),
    ("config", "isolation", "algorithms"),
    ("planner", "metrics"),
    ("models", "data"),
    ("batching", "launching"),
    ("rewards", "checkpoint", "environments"),
    ("rollout", "training"),
    ("weight_sync",),
    ("cluster",),
    ("loops",),
    ("preflight",),
    ("app",),
    ("pipeline",),
    ("cli", "api"),
)
"""A module imports from the layers before its own, and from its own folder; never sideways, never from a later one."""
RANKS = {folder: rank for rank, layer in enumerate(LAYERS) for folder in layer}

ONLY_IN = {
    "ray": {"cluster", "preflight", "cli"},
    "vllm": {"rollout", "weight_sync"},
    "deepspeed": {"training", "checkpoint", "weight_sync"},
}
LIGHT = (
    "types",
    "errors",
    "exit_codes",
    "program",
    "sizes",
    "imports",
    "catalog",
    "config",
    "planner",
    "launching",
    "pipeline",
    "cli",
    "api",
)
"""Load in the base install, which has none of HEAVY."""
HEAVY = ("torch", "ray", "vllm", "transformers", "deepspeed", "numpy")

FILE_LINES = 400
FUNCTION_LINES = 60
DRIVER_LINES = 100
OFFLINE_DRIVER_LINES = 120
PUBLIC_METHODS = 8
VAGUE_NAMES = {"utils.py", "util.py", "helpers.py", "helper.py", "common.py", "misc.py"}


@dataclass(frozen=True)
class Source:
    """One file: its path from the root of the repository, with slashes, and its text."""

    path: str
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @property
    def folder(self) -> str:
        """ "training" for ray_rl/training/trainer.py, "types" for ray_rl/types.py, "" for ray_rl/__init__.py."""
        first = self.path.split("/")[1].removesuffix(".py")
        return "" if first == "__init__" else first


@cache
def package_sources() -> tuple[Source, ...]:
    """Every file of the package, read and parsed once for all rules."""
    files = sorted((ROOT / PACKAGE).rglob("*.py"))
    return tuple(Source(file.relative_to(ROOT).as_posix(), file.read_text(encoding="utf-8")) for file in files)


@cache
def walk(tree: ast.AST) -> tuple[ast.AST, ...]:
    """The nodes of a tree: most rules read all of them."""
    return tuple(ast.walk(tree))


Violations = Iterator[tuple[int, str]]
Rule = Callable[[Source], Violations]


def imported(source: Source) -> Iterator[tuple[int, str]]:
    """Every module or name imported anywhere: in functions, under TYPE_CHECKING, and by `import_module("...")`."""
    for node in walk(source.tree):
        match node:
            case ast.Import(names=names):
                yield from ((node.lineno, alias.name) for alias in names)
            case ast.ImportFrom(module=str(module), level=0, names=names):
                yield from ((node.lineno, f"{module}.{alias.name}") for alias in names)
            case ast.Call(func=function, args=[ast.Constant(value=str(module)), *_]):
                if ast.unparse(function) in {"import_module", "importlib.import_module", "__import__"}:
                    yield node.lineno, module


@cache
def calls(tree: ast.AST) -> list[tuple[ast.Call, str]]:
    """Every call with the dotted name of what is called."""
    return [(node, ast.unparse(node.func)) for node in walk(tree) if isinstance(node, ast.Call)]


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def imports_point_down(source: Source) -> Violations:
    if source.folder and source.folder not in RANKS:
        yield 1, f"{source.folder!r} has no place in LAYERS"
        return
    for line, name in imported(source):
        package, _, rest = name.partition(".")
        target = rest.split(".")[0]
        if package != PACKAGE or target not in RANKS or target == source.folder:
            continue
        if not source.folder and target == "api":
            continue
        if not source.folder or RANKS[target] >= RANKS[source.folder]:
            yield line, f"{source.folder or PACKAGE} imports {target}, which is not below it"


def libraries_stay_in_their_folders(source: Source) -> Violations:
    for line, name in imported(source):
        library = name.split(".")[0]
        if library in ONLY_IN and source.folder not in ONLY_IN[library]:
            yield line, f"{library} is imported only in {', '.join(sorted(ONLY_IN[library]))}"


def imports_are_absolute(source: Source) -> Violations:
    for node in walk(source.tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            yield node.lineno, "relative import"


def files_are_short(source: Source) -> Violations:
    drivers = {"ray_rl/loops/online.py": DRIVER_LINES, "ray_rl/loops/offline.py": OFFLINE_DRIVER_LINES}
    limit = drivers.get(source.path, FILE_LINES)
    lines = len(source.text.splitlines())
    if lines > limit:
        yield lines, f"{lines} lines in a file, at most {limit}"


def functions_are_short(source: Source) -> Violations:
    for node in functions(source.tree):
        lines = (node.end_lineno or node.lineno) - node.lineno + 1
        if lines > FUNCTION_LINES:
            yield node.lineno, f"{lines} lines in {node.name}, at most {FUNCTION_LINES}"


def classes_are_small(source: Source) -> Violations:
    for node in walk(source.tree):
        if not isinstance(node, ast.ClassDef):
            continue
        public = [
            item.name
            for item in node.body
            if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef)
            and not item.name.startswith("_")
            and not any("property" in ast.unparse(decorator) for decorator in item.decorator_list)
        ]
        if len(public) > PUBLIC_METHODS:
            yield node.lineno, f"{len(public)} public methods in {node.name}, at most {PUBLIC_METHODS}"


def only_the_command_line_prints(source: Source) -> Violations:
    if source.folder != "cli":
        yield from ((call.lineno, "print outside cli/") for call, name in calls(source.tree) if name == "print")


BOUNDARIES = {"ray_rl/cluster/engines/health.py", "ray_rl/cli/ending.py"}
"""Between us and whatever may happen: the supervisor of Ray's workers, and the end of every command."""


def nothing_catches_everything(source: Source) -> Violations:
    if source.path in BOUNDARIES:
        return
    broad = {"Exception", "BaseException"}
    for node in walk(source.tree):
        if isinstance(node, ast.ExceptHandler):
            caught = {"BaseException"} if node.type is None else {ast.unparse(part) for part in parts(node.type)}
            if caught & broad:
                yield node.lineno, "catches everything; catch what can be acted on"
    for call, name in calls(source.tree):
        if name.split(".")[-1] == "suppress" and {ast.unparse(argument) for argument in call.args} & broad:
            yield call.lineno, "suppresses everything; name what is expected"


def parts(node: ast.expr) -> list[ast.expr]:
    return node.elts if isinstance(node, ast.Tuple) else [node]


def file_names_say_the_concern(source: Source) -> Violations:
    name = source.path.rsplit("/", 1)[-1]
    if name in VAGUE_NAMES:
        yield 1, f"{name} does not name a concern"


def attributes_are_known(source: Source) -> Violations:
    for call, name in calls(source.tree):
        if name == "hasattr":
            yield call.lineno, "hasattr: say by type what it is"
        if name == "getattr" and len(call.args) == 3:
            yield call.lineno, "getattr with a default: a default lives on the field"


def sources_are_ascii(source: Source) -> Violations:
    for line, text in enumerate(source.text.splitlines(), start=1):
        if not text.isascii():
            yield line, "not ASCII: " + ascii(next(char for char in text if not char.isascii()))


def async_code_does_not_block(source: Source) -> Violations:
    """`time.sleep`, and Ray's blocking `get` and `wait`, in the body of a coroutine, functions inside it excepted."""
    for function in functions(source.tree):
        if isinstance(function, ast.AsyncFunctionDef):
            inner = {node for nested in functions(function) if nested is not function for node in ast.walk(nested)}
            for call, name in calls(function):
                if name in {"time.sleep", "ray.get", "ray.wait"} and call not in inner:
                    yield call.lineno, f"{name} blocks the event loop in {function.name}"


TAKES_WHOLE_CONFIG = {"api", "app", "pipeline", "config", "planner", "cli", "loops"}
"""Folders whose functions are about a run as a whole. Everybody else takes small settings that say what he needs."""


def functions_take_what_they_need(source: Source) -> Violations:
    if source.folder in TAKES_WHOLE_CONFIG:
        return
    for function in functions(source.tree):
        arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
        annotations = [ast.unparse(argument.annotation) for argument in arguments if argument.annotation is not None]
        if any(re.search(r"\bRunConfig\b", annotation) for annotation in annotations):
            yield function.lineno, f"{function.name} takes RunConfig; give it the settings that it reads"


LONG = "\n".join(["def long():"] + ["    x = 1"] * FUNCTION_LINES)
BIG = "\n".join(["class Big:"] + [f"    def m{i}(self): ..." for i in range(PUBLIC_METHODS + 1)])
SMALL = "\n".join(["class Small:"] + [f"    @property\n    def m{i}(self): ..." for i in range(20)])

RULES: dict[Rule, tuple[list[tuple[str, str, int]], list[tuple[str, str]]]] = {
    imports_point_down: (
        [
            ("data/a.py", "import math\nfrom ray_rl.training.trainer import Trainer", 2),
            ("data/a.py", "import ray_rl.loops.online", 1),
            ("data/a.py", "from ray_rl import cluster", 1),
            ("data/a.py", "from ray_rl.models import load", 1),
            ("config/a.py", "def f():\n    from ray_rl.planner import plan", 2),
            ("algorithms/a.py", "from ray_rl.config.losses import Clipped", 1),
            ("metrics/a.py", "if TYPE_CHECKING:\n    from ray_rl.rollout.engine import Engine", 2),
            ("data/a.py", "importlib.import_module('ray_rl.cli.main')", 1),
            ("errors.py", "from ray_rl.types import Prompt", 1),
            ("__init__.py", "from ray_rl.types import Prompt", 1),
            ("novel/a.py", "", 1),
        ],
        [
            (
                "data/a.py",
                "from ray_rl import __version__\nfrom ray_rl.data.b import c\nfrom ray_rl.config import RunConfig",
            ),
            ("cli/a.py", "from ray_rl.loops import online\nfrom ray_rl.types import Prompt"),
            ("__init__.py", "from ray_rl.api import train"),
        ],
    ),
    libraries_stay_in_their_folders: (
        [
            ("loops/a.py", "def f():\n    import ray", 2),
            ("training/a.py", "from ray.actor import ActorHandle", 1),
            ("cluster/a.py", "import vllm", 1),
            ("rollout/a.py", "import deepspeed.comm", 1),
        ],
        [
            ("cluster/a.py", "import ray\nimport raymond"),
            ("weight_sync/a.py", "import vllm, deepspeed"),
        ],
    ),
    imports_are_absolute: (
        [("data/a.py", "from . import b", 1), ("data/a.py", "from ..config import b", 1)],
        [("data/a.py", "from ray_rl.data import b")],
    ),
    files_are_short: (
        [
            ("data/a.py", "\n" * (FILE_LINES + 1), FILE_LINES + 1),
            ("loops/online.py", "\n" * (DRIVER_LINES + 1), DRIVER_LINES + 1),
        ],
        [("data/a.py", "\n" * FILE_LINES), ("loops/online.py", "\n" * DRIVER_LINES)],
    ),
    functions_are_short: (
        [("data/a.py", LONG, 1), ("data/a.py", "async " + LONG, 1)],
        [("data/a.py", "\n".join(LONG.splitlines()[:-1]))],
    ),
    classes_are_small: ([("data/a.py", BIG, 1)], [("data/a.py", SMALL), ("data/a.py", BIG.replace("m0", "_m0"))]),
    only_the_command_line_prints: (
        [("metrics/a.py", "x = 1\nprint(x)", 2)],
        [("cli/a.py", "print(1)"), ("metrics/a.py", "console.print(1)")],
    ),
    nothing_catches_everything: (
        [
            ("data/a.py", "try:\n    f()\nexcept Exception:\n    pass", 3),
            ("data/a.py", "try:\n    f()\nexcept:\n    pass", 3),
            ("data/a.py", "try:\n    f()\nexcept (KeyError, BaseException) as e:\n    pass", 3),
            ("data/a.py", "with contextlib.suppress(Exception):\n    f()", 1),
        ],
        [
            ("data/a.py", "try:\n    f()\nexcept (KeyError, OSError):\n    pass"),
            ("cluster/engines/health.py", "try:\n    f()\nexcept Exception:\n    pass"),
            ("cli/ending.py", "try:\n    f()\nexcept BaseException:\n    pass"),
        ],
    ),
    file_names_say_the_concern: ([("data/utils.py", "", 1), ("models/common.py", "", 1)], [("data/shuffle.py", "")]),
    attributes_are_known: (
        [("data/a.py", "hasattr(x, 'y')", 1), ("data/a.py", "getattr(x, 'y', None)", 1)],
        [("data/a.py", "getattr(x, name)")],
    ),
    sources_are_ascii: ([("data/a.py", "x = 1\n# caf\u00e9", 2)], [("data/a.py", "x = '\\u00e9'")]),
    functions_take_what_they_need: (
        [
            ("rollout/a.py", "def f(x: int, config: RunConfig) -> None: ...", 1),
            ("data/a.py", "class A:\n    async def f(self, *, config: RunConfig | None): ...", 2),
        ],
        [
            ("loops/a.py", "def f(config: RunConfig): ..."),
            ("app/a.py", "def f(config: RunConfig): ..."),
            ("data/a.py", "def f(config: DataConfig) -> RunConfig: ..."),
        ],
    ),
    async_code_does_not_block: (
        [
            ("cluster/a.py", "async def f():\n    time.sleep(1)", 2),
            ("cluster/a.py", "async def f():\n    return ray.get(x)", 2),
        ],
        [
            ("cluster/a.py", "def f():\n    time.sleep(1)"),
            ("cluster/a.py", "async def f():\n    def g():\n        time.sleep(1)\n    await asyncio.to_thread(g)"),
        ],
    ),
}
"""Every rule, with sources that offend (folder and file, text, line of the violation) and sources that do not."""

OFFENCES = [(rule, *offence) for rule, (offences, _) in RULES.items() for offence in offences]
INNOCENTS = [(rule, *innocent) for rule, (_, innocents) in RULES.items() for innocent in innocents]


@pytest.fixture(scope="module")
def package() -> tuple[Source, ...]:
    return package_sources()


def name_of(value: object) -> str | None:
    return value.__name__ if callable(value) else None


@pytest.mark.parametrize("rule", RULES, ids=name_of)
def test_the_package_keeps_the_rule(rule: Rule, package: tuple[Source, ...]):
    violations = [f"{source.path}:{line}: {message}" for source in package for line, message in rule(source)]
    assert not violations, "\n" + "\n".join(violations)


@pytest.mark.parametrize(("rule", "path", "text", "line"), OFFENCES, ids=name_of)
def test_the_rule_finds_an_offence_on_its_line(rule: Rule, path: str, text: str, line: int):
    assert [found for found, _ in rule(Source(f"{PACKAGE}/{path}", text))] == [line]


@pytest.mark.parametrize(("rule", "path", "text"), INNOCENTS, ids=name_of)
def test_the_rule_lets_the_innocent_pass(rule: Rule, path: str, text: str):
    assert list(rule(Source(f"{PACKAGE}/{path}", text))) == []


def executed(source: Source) -> Iterator[str]:
    """What a source imports when it runs: not what stands under TYPE_CHECKING."""
    branches = [n for n in walk(source.tree) if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"]
    skipped = {line for branch in branches for line in range(branch.lineno, (branch.end_lineno or 0) + 1)}
    yield from (name for line, name in imported(source) if line not in skipped)


def circle(sources: Sequence[Source]) -> list[str]:
    """Modules that import each other in a circle, function-level imports included; [] if there is none."""
    modules = {
        source.path.removesuffix(".py").removesuffix("/__init__").replace("/", "."): source for source in sources
    }
    graph = {
        module: {target for name in executed(source) for target in (name, name.rpartition(".")[0])}
        & (modules.keys() - {module})
        for module, source in modules.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_no_modules_import_each_other_in_a_circle(package: tuple[Source, ...]):
    assert circle(package) == []


def test_a_circle_through_an_import_in_a_function_would_be_noticed():
    one = Source("ray_rl/data/a.py", "from ray_rl.data.b import f")
    assert circle([one, Source("ray_rl/data/b.py", "def f():\n    import ray_rl.data.a")])[0] == "ray_rl.data.a"
    assert circle([one, Source("ray_rl/data/b.py", "import math")]) == []


ROLE_FILES = 8
"""At most so many files name a role; all others loop over `ray_rl.config.roles.roles_of`."""


def names_a_role(source: Source) -> Violations:
    """Names of roles as text, and their sections of a `config`. "reward" as text has other meanings."""
    for node in walk(source.tree):
        if isinstance(node, ast.Constant) and node.value in ("actor", "critic", "reference"):
            yield node.lineno, f"names the role {node.value}"
        if isinstance(node, ast.Attribute) and node.attr in ("critic", "reference", "reward"):
            owner = ast.unparse(node.value).rpartition(".")[2].lstrip("_")
            if owner == "config":
                yield node.lineno, f"reads the section {node.attr}"


def test_roles_are_written_in_few_files(package: tuple[Source, ...]):
    naming = {source.path: next(names_a_role(source), None) for source in package}
    found = [f"{path}:{first[0]}: {first[1]}" for path, first in naming.items() if first is not None]
    assert len(found) <= ROLE_FILES, "\n" + "\n".join(found)


def test_a_file_that_names_a_role_would_be_noticed():
    text = "x = self._config.critic.path\ny = {'actor': 1}\nz = roles.critic\nplace = 'reward'"
    assert [line for line, _ in names_a_role(Source("ray_rl/novel.py", text))] == [1, 2]


def loaded_by(modules: list[str], libraries: tuple[str, ...]) -> list[str]:
    """The libraries that a fresh interpreter has loaded after importing the modules."""
    program = f"import sys, {', '.join(modules)}; print(*({set(libraries)!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 0, done.stderr
    return sorted(done.stdout.split())


def test_the_driver_loads_without_the_libraries_of_its_workers():
    """Torch alone is two thirds of what a driver would load, in processor time."""
    drivers = ["ray_rl.app.run", "ray_rl.app.build", "ray_rl.app.build_offline", "ray_rl.app.workers"]
    assert loaded_by(drivers, ("torch", "transformers", "vllm", "deepspeed")) == []


def test_the_light_modules_load_without_any_heavy_library(package: tuple[Source, ...]):
    light = [source.path for source in package if source.folder in LIGHT and not source.path.endswith("__main__.py")]
    modules = [path.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for path in light]
    assert loaded_by(modules, HEAVY) == []


def test_a_heavy_library_would_be_noticed():
    assert loaded_by(["json.tool"], ("json", "torch")) == ["json"]
