"""No wait without a bound, nothing unpickled that another could have written.

Every call in the package that can wait is found by its name. It has a time limit of its own, or a comment
`# bound: reason` that says why it ends without one; a call that runs what it reads has a comment `# trusted: reason`.
"""

import ast
import re
from collections.abc import Iterator

import pytest

from ray_rl.config.run import ModelConfig
from tests.test_architecture import PACKAGE, Source, calls, package_sources, walk

LIMITS = {"timeout", "timeout_s", "deadline_s"}
"""Keywords that bound a call."""

MADE_ANYWHERE = {
    "init_process_group",
    "init_distributed",
    "new_group",
    "TCPStore",
    "ProcessGroupGloo",
    "ProcessGroupNCCL",
    "init_device_mesh",
    "new_subgroups",
    "rendezvous_store",
    "split_group",
}
MADE_ANYWHERE |= {"create_connection", "urlopen", "call_all"}
WITH_LIMIT = MADE_ANYWHERE | {"ray.get", "ray.wait", "asyncio.wait", "asyncio.wait_for", "asyncio.timeout", "settle"}
WITH_LIMIT |= {"asyncio.gather", "asyncio.as_completed", "asyncio.TaskGroup"}
WITH_LIMIT |= {"concurrent.futures.wait", "concurrent.futures.as_completed", "select.select"}
WITH_LIMIT |= {"subprocess.run", "subprocess.check_output", "subprocess.check_call", "subprocess.call"}
WITH_LIMIT |= {"receive", "send"}
"""Calls, by their whole name or (MADE_ANYWHERE) its last part, that need a limit by keyword, or some by position."""

BY_POSITION = {"asyncio.wait_for": 2, "asyncio.timeout": 1, "ProcessGroupGloo": 4, "select.select": 4}
"""Which argument the limit is."""

WITH_ARGUMENT = {"wait", "join", "result", "get", "acquire", "communicate", "exception", "recv", "accept"}
"""Methods that wait for ever when they are given nothing, or None."""
OF_A_THREAD = {"result", "exception"}
"""Those of a future of `concurrent.futures`."""

COLLECTIVES = {"all_reduce", "all_gather", "all_gather_object", "all_gather_into_tensor", "all_to_all", "barrier"}
COLLECTIVES |= {
    "all_gather_coalesced",
    "all_reduce_coalesced",
    "all_to_all_single",
    "batch_isend_irecv",
    "broadcast_object_list",
    "gather_object",
    "irecv",
    "isend",
    "monitored_barrier",
    "reduce_scatter",
    "reduce_scatter_tensor",
    "scatter_object_list",
}
COLLECTIVES |= {"trainer_init", "send_weights", "init_weight_transfer_engine"}
"""The last are vLLM's transfer over NCCL."""
ON_A_GROUP = {"broadcast", "gather", "recv", "reduce", "scatter", "send"}
"""Of `torch.distributed`, the latter where the owner's name says so. Their limit is that of their group."""
OWNERS = ("dist", "distributed", "group")

FROM_ELSEWHERE = {"torch.load", "pickle.load", "pickle.loads", "pickle.Unpickler", "cloudpickle.load", "eval", "exec"}
FROM_ELSEWHERE |= {"cloudpickle.loads", "joblib.load", "marshal.load", "marshal.loads", "shelve.open", "yaml.load"}
FROM_ELSEWHERE |= {"yaml.unsafe_load", "yaml.full_load", "pandas.read_pickle", "pd.read_pickle"}
"""Calls that run what they read."""

REASON = re.compile(r"# (bound|trusted): \S")
"""A comment that says why a call without a limit ends, or why what it reads may run. On the line or the line above."""


def unbounded(source: Source) -> Iterator[tuple[int, str]]:
    """Line and name of every call, and every awaited reference of Ray's, that has no limit of its own."""
    imports = _imports(source.tree)
    for call, whole in calls(source.tree):
        name = re.sub(r"\(.*\)", "()", whole, flags=re.DOTALL)
        first, dot, rest = name.partition(".")
        called = imports.get(first, first) + dot + rest  # whatever it is imported as
        last = called.rsplit(".", 1)[-1]
        listed = last if last in MADE_ANYWHERE else called if called in WITH_LIMIT else name
        if listed in WITH_LIMIT:
            if not _has_limit(call, position=BY_POSITION.get(listed)):
                yield call.lineno, name
        elif last in OF_A_THREAD and "concurrent.futures" not in source.text:
            continue  # of a task of asyncio: it never waits
        elif last in WITH_ARGUMENT and isinstance(call.func, ast.Attribute):
            if all(map(_is_none, (*call.args, *(keyword.value for keyword in call.keywords)))):
                yield call.lineno, name
        elif last in COLLECTIVES or (last in ON_A_GROUP and called.removesuffix(f".{last}").endswith(OWNERS)):
            yield call.lineno, name
    for node in walk(source.tree):
        if isinstance(node, ast.Await) and source.folder == "cluster" and _is_reference(node.value):
            yield node.lineno, f"await {ast.unparse(node.value)}"


def _imports(tree: ast.AST) -> dict[str, str]:
    """Whole names of what is imported, by the name that it has here."""
    found = {}
    for node in walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.asname: alias.name for alias in node.names if alias.asname}
            found |= {name: name for alias in node.names for name in [alias.name.partition(".")[0]] if not alias.asname}
        elif isinstance(node, ast.ImportFrom):
            found |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _has_limit(call: ast.Call, *, position: int | None) -> bool:
    if position is not None and len(call.args) >= position:
        return not _is_none(call.args[position - 1])
    return any(keyword.arg in LIMITS and not _is_none(keyword.value) for keyword in call.keywords)


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _is_reference(node: ast.expr) -> bool:
    """A name, or `handle.method.remote(...)`: of Ray, awaited without a limit."""
    return isinstance(node, ast.Name) or (isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".remote"))


def untrusted(source: Source) -> Iterator[tuple[int, str]]:
    """Line and name of every call that would run what a file holds: pickles, weights that may be some, remote code."""
    for call, name in calls(source.tree):
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        allows = given.get("allow_pickle", "False") != "False" or given.get("trust_remote_code") == "True"
        is_model = name.endswith("from_pretrained") and "Model" in name
        is_safe = given.get("use_safetensors") == "True" or "gguf_file" in given
        if name in FROM_ELSEWHERE or allows or (is_model and not is_safe):
            yield call.lineno, name


def excused(source: Source, line: int, word: str) -> int | None:
    """The line of the comment that gives the reason for the call at `line`: that line, or the comment line above."""
    lines = source.text.splitlines()
    for at in (line, line - 1):
        text = lines[at - 1] if at else ""
        reason = REASON.search(text)
        if reason and reason[1] == word and (at == line or text.lstrip().startswith("#")):
            return at
    return None


WORDS = {unbounded: "bound", untrusted: "trusted"}


@pytest.mark.parametrize("rule", WORDS)
def test_the_package_keeps_the_rule(rule):
    offences = [
        f"{source.path}:{line}: {name}"
        for source in package_sources()
        for line, name in rule(source)
        if excused(source, line, WORDS[rule]) is None
    ]
    assert not offences, "\n" + "\n".join(offences)


@pytest.mark.parametrize("rule", WORDS)
def test_every_reason_is_that_of_a_call_which_needs_one(rule):
    for source in package_sources():
        given = {n for n, text in enumerate(source.text.splitlines(), 1) if f"# {WORDS[rule]}: " in text}
        assert given == {excused(source, line, WORDS[rule]) for line, _ in rule(source)} - {None}, source.path


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("work.wait()  # bound: of the group", 1),
        ("# bound: of the group\nwork.wait()", 1),
        ("work.wait()  # bound:", None),
        ("work.wait()  # trusted: ours", None),
        ("other.wait()  # bound: of the group\nwork.wait()", None),
    ],
)
def test_a_reason_stands_on_the_line_or_on_a_line_of_its_own_above(text, line):
    source = Source(f"{PACKAGE}/cluster/a.py", text)
    *_, (at, _) = unbounded(source)
    assert excused(source, at, "bound") == line


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("ray.get(refs)", "ray.get"),
        ("ray.get(refs, timeout=None)", "ray.get"),
        ("ray.wait(refs, num_returns=2)", "ray.wait"),
        ("async def f():\n    await asyncio.wait(tasks)", "asyncio.wait"),
        ("async def f():\n    await ref", "await ref"),
        ("async def f():\n    await handle.update.remote(batch)", "await handle.update.remote(batch)"),
        ("dist.init_process_group('gloo', rank=0)", "dist.init_process_group"),
        ("deepspeed.init_distributed(dist_backend='gloo')", "deepspeed.init_distributed"),
        ("dist.new_group([0, 1])", "dist.new_group"),
        ("dist.TCPStore(address, port, 2)", "dist.TCPStore"),
        ("dist.all_reduce(x)", "dist.all_reduce"),
        ("torch.distributed.barrier(group)", "torch.distributed.barrier"),
        ("dist.gather(flat, None, dst=0)", "dist.gather"),
        ("dist.ProcessGroupGloo(store, 0, 2)", "dist.ProcessGroupGloo"),
        ("work.wait()", "work.wait"),
        ("thread.join()", "thread.join"),
        ("from concurrent.futures import Future\nfuture.result()", "future.result"),
        ("queue.get()", "queue.get"),
        ("lock.acquire()", "lock.acquire"),
        ("process.communicate()", "process.communicate"),
        ("subprocess.run(['git'])", "subprocess.run"),
        ("socket.create_connection(address)", "socket.create_connection"),
        ("receive(channel)", "receive"),
        ("async def f():\n    await asyncio.gather(*refs)", "asyncio.gather"),
        ("async def f():\n    await asyncio.wait_for(task, None)", "asyncio.wait_for"),
        ("thread.join(timeout=None)", "thread.join"),
        ("event.wait(None)", "event.wait"),
        ("from ray import get\nget(refs)", "get"),
        ("import ray as r\nr.get(refs)", "r.get"),
        ("from torch.distributed import broadcast\nbroadcast(x, 0)", "broadcast"),
        ("import torch.distributed as td\ntd.broadcast(x, 0)", "td.broadcast"),
        ("import torch\ntorch.distributed.broadcast(x, 0)", "torch.distributed.broadcast"),
        ("from torch.distributed import new_group as group_of\ngroup_of([0])", "group_of"),
        ("dist.all_reduce(x, async_op=True)", "dist.all_reduce"),
        ("dist.batch_isend_irecv(operations)", "dist.batch_isend_irecv"),
        ("from concurrent.futures import wait\nwait(futures)", "wait"),
    ],
)
def test_a_wait_without_a_limit_is_found(text, name):
    assert [name for _, name in unbounded(Source(f"{PACKAGE}/cluster/a.py", text))] == [name]


@pytest.mark.parametrize(
    "text",
    [
        "ray.get(refs, timeout=5)",
        "async def f():\n    await asyncio.wait(tasks, timeout=5)",
        "async def f():\n    await asyncio.wait_for(task, 5)",
        "async def f():\n    await settle(calls, timeout_s=5)",
        "async def f():\n    await self._team.all(refs)",
        "dist.init_process_group('gloo', timeout=limit)",
        "work.wait(limit)",
        "task.result()",
        "', '.join(names)",
        "values.get('key')",
        "event.wait(timeout=5)",
        "os.path.join(a, b)",
        "values_NV.gather(1, labels)",
        "dist.ProcessGroupGloo(store, 0, 2, limit)",
    ],
)
def test_what_has_a_limit_or_does_not_wait_passes(text):
    assert list(unbounded(Source(f"{PACKAGE}/cluster/a.py", text))) == []


@pytest.mark.parametrize(
    "text",
    [
        "torch.load(path)",
        "pickle.loads(data)",
        "np.load(path, allow_pickle=True)",
        "yaml.load(text, yaml.Loader)",
        "eval(x)",
        "AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)",
        "AutoTokenizer.from_pretrained(folder, trust_remote_code=True)",
    ],
)
def test_a_call_that_would_run_what_it_reads_is_found(text):
    assert len(list(untrusted(Source(f"{PACKAGE}/checkpoint/a.py", text)))) == 1


@pytest.mark.parametrize(
    "text",
    [
        "np.load(path, allow_pickle=False)",
        "yaml.safe_load(text)",
        "load_file(path)",
        "AutoTokenizer.from_pretrained(folder)",
    ],
)
def test_a_call_that_only_reads_passes(text):
    assert list(untrusted(Source(f"{PACKAGE}/checkpoint/a.py", text))) == []


def test_remote_code_runs_only_where_the_user_asks_for_it():
    assert ModelConfig(path="model").trust_remote_code is False
