"""deploy/monitoring/ speaks of metrics that exist: runs' own by the code that logs them, nodes' by Ray's."""

import ast
import itertools
import json
import re
from functools import cache
from importlib.metadata import distribution
from pathlib import Path

import pytest
import yaml

from ray_rl.config import roles
from ray_rl.metrics.prometheus import NAMESPACE, gauge_name
from tests.test_architecture import package_sources, walk

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy/monitoring"
READERS = {"text.py", "summary.py"}
"""Of ray_rl/metrics: they read keys, and log none."""


def sources():
    return [source.tree for source in package_sources() if Path(source.path).name not in READERS]


def first_arguments(tree, method):
    """The names given to calls of a method: `run.phase("train")`."""
    for node in walk(tree):
        match node:
            case ast.Call(func=ast.Attribute(attr=name), args=[ast.Constant(value=str(argument))]) if name == method:
                yield argument


def objectives(tree):
    """The names under which trainers log: an objective's `name: ClassVar[str] = "policy"`, or a name of a role."""
    for node in walk(tree):
        match node:
            case ast.AnnAssign(target=ast.Name("name"), annotation=ast.Subscript(ast.Name("ClassVar")), value=value):
                yield getattr(roles, value.id) if isinstance(value, ast.Name) else value.value


@cache
def logged():
    """Every key of metrics.jsonl that the code can write, but for those that hold a name of the user's."""
    trees = sources()
    phases = {phase for tree in trees for phase in first_arguments(tree, "phase")}
    named = {name for tree in trees for name in objectives(tree)}
    whole = {node.value for tree in trees for node in walk(tree) if is_key(node)}
    ends = {"grad_norm", "learning_rate"}
    return {"step", "version"} | whole | {f"time/{p}_s" for p in phases} | {f"{n}/{e}" for n in named for e in ends}


def is_key(node):
    return isinstance(node, ast.Constant) and re.fullmatch(r"[a-z]+/[a-z0-9_]+", str(node.value)) is not None


def logged_by_ray():
    agent = distribution("ray").locate_file("ray/dashboard/modules/reporter/reporter_agent.py")
    return {f"ray_{name}" for name in re.findall(r'Gauge\(\s*"(node_\w+)"', Path(str(agent)).read_text())}


@pytest.fixture(scope="module")
def dashboard():
    return json.loads((FOLDER / "grafana-dashboard.json").read_text())


def queries(dashboard):
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    return expressions + [variable["definition"] for variable in variables(dashboard) if variable["type"] == "query"]


def variables(dashboard):
    return dashboard["templating"]["list"]


def names(text):
    return set(re.findall(r"\bray_\w+", text))


def test_every_metric_of_the_dashboard_is_one_that_a_run_or_ray_exports(dashboard):
    queried = set().union(*(names(query) for query in queries(dashboard)))
    ours = {name for name in queried if name.startswith(NAMESPACE)}
    assert ours - {gauge_name(key) for key in logged()} == set()
    assert queried - ours - logged_by_ray() == set()
    assert len(ours) > 20
    assert len(queried - ours) > 3


def test_a_misspelt_metric_would_be_noticed():
    known = {gauge_name(key) for key in logged()} | logged_by_ray()
    assert {"ray_rl_time_rollout_s", "ray_rl_critic_grad_norm", "ray_node_gram_used"} <= known
    assert not {"ray_rl_time_rolout_s", "ray_rl_value_grad_norm", "ray_rl_policy_kl", "ray_node_vram_used"} & known


def test_every_query_asks_for_the_runs_or_nodes_that_are_chosen(dashboard):
    known = {variable["name"] for variable in variables(dashboard)}
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            (name,) = names(target["expr"])
            label = "run" if name.startswith(NAMESPACE) else "instance"
            assert f'{name}{{{label}=~"${label}"}}' in target["expr"]
            assert target["expr"].startswith("max by (")
            assert target["expr"].count("(") == target["expr"].count(")")
            assert set(re.findall(r"\$\{?(\w+)", json.dumps(target))) <= known


def test_the_dashboard_has_what_grafana_needs_to_import_it(dashboard):
    panels = dashboard["panels"]
    assert dashboard["uid"]
    assert dashboard["title"]
    assert dashboard["schemaVersion"] >= 39
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        assert panel["title"]
        if panel["type"] != "row":
            assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
            letters = [target["refId"] for target in panel["targets"]]
            assert len(set(letters)) == len(letters) > 0


def test_no_panel_lies_over_another_or_leaves_the_grid(dashboard):
    places = [panel["gridPos"] for panel in dashboard["panels"]]
    assert all(place["x"] >= 0 and place["x"] + place["w"] <= 24 for place in places)
    cells = [
        cell
        for place in places
        for cell in itertools.product(
            range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"])
        )
    ]
    assert len(set(cells)) == len(cells)


def test_the_pod_monitor_finds_the_port_that_kuberay_gives_pods():
    monitor = yaml.safe_load((FOLDER / "podmonitor.yaml").read_text())
    assert (monitor["apiVersion"], monitor["kind"]) == ("monitoring.coreos.com/v1", "PodMonitor")
    (chosen,) = monitor["spec"]["selector"]["matchExpressions"]
    assert chosen == {"key": "ray.io/node-type", "operator": "In", "values": ["head", "worker"]}
    assert [endpoint["port"] for endpoint in monitor["spec"]["podMetricsEndpoints"]] == ["metrics"]


def test_prometheus_reads_the_file_in_which_ray_lists_its_nodes():
    constants = distribution("ray").locate_file("ray/_private/ray_constants.py")
    (name,) = re.findall(r'^PROMETHEUS_SERVICE_DISCOVERY_FILE = "(.+)"', Path(str(constants)).read_text(), re.MULTILINE)
    jobs = yaml.safe_load((FOLDER / "prometheus.yaml").read_text())["scrape_configs"]
    assert [found["files"] for job in jobs for found in job["file_sd_configs"]] == [[f"/tmp/ray/{name}"]]
