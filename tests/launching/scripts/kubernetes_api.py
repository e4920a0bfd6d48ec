"""As much of an API server as kubectl needs to create, read and patch: discovery and objects, over plain HTTP."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

RESOURCES = {
    "/api/v1": [("configmaps", "ConfigMap"), ("serviceaccounts", "ServiceAccount"), ("pods", "Pod")],
    "/apis/rbac.authorization.k8s.io/v1": [("roles", "Role"), ("rolebindings", "RoleBinding")],
    "/apis/ray.io/v1": [("rayjobs", "RayJob")],
    "/apis/kueue.x-k8s.io/v1beta2": [("workloads", "Workload")],
}
"""Resource and kind by group and version."""
VERBS = ["create", "get", "list", "patch", "delete"]


class KubernetesApi:
    """Objects by path: /apis/ray.io/v1/namespaces/default/rayjobs/math."""

    def __init__(self) -> None:
        self.objects: dict[str, dict] = {}
        self.logs: dict[str, str] = {}
        self.forbidden: set[str] = set()
        """Resources that may not be made."""

    def of_kind(self, kind: str) -> dict:
        """The only object of a kind."""
        (found,) = [item for item in self.objects.values() if item["kind"] == kind]
        return found

    def answer(self, method: str, url: str, body: bytes) -> tuple[int, dict | str]:
        """Status and content."""
        path, query = urlsplit(url).path, parse_qs(urlsplit(url).query)
        if method == "GET":
            return self._read(path, query)
        content = json.loads(body)
        if method == "POST":
            resource = path.rpartition("/")[2]
            if resource in self.forbidden:
                return _failure(403, "Forbidden", f'{resource} is forbidden: User "me" cannot create resource')
            content["metadata"]["uid"] = f"uid-of-{content['metadata']['name']}"
            content["metadata"]["resourceVersion"] = "1"
            self.objects[f"{path}/{content['metadata']['name']}"] = content
            return 201, content
        if path not in self.objects:
            return _failure(404, "NotFound", f"{path} not found")
        _merge(self.objects[path], content)
        return 200, self.objects[path]

    def _read(self, path: str, query: dict[str, list[str]]) -> tuple[int, dict | str]:
        if path == "/api":
            return 200, {"kind": "APIVersions", "versions": ["v1"]}
        if path == "/apis":
            return 200, {"kind": "APIGroupList", "apiVersion": "v1", "groups": [*map(_group, list(RESOURCES)[1:])]}
        if path in RESOURCES:
            return 200, _resources(path)
        if path == "/openapi/v3":
            return 200, {"paths": {at[1:]: {"serverRelativeURL": f"/openapi/v3{at}"} for at in RESOURCES}}
        if path.startswith("/openapi/v3/"):
            return 200, _validates(path.removeprefix("/openapi/v3"))
        if path.endswith("/log"):
            return 200, self.logs[path.split("/")[-2]]
        if path in self.objects:
            return 200, self.objects[path]
        resource = path.rpartition("/")[2]
        if any(resource == plural for known in RESOURCES.values() for plural, _ in known):
            wanted = dict(pair.split("=") for pair in query.get("labelSelector", [""])[0].split(",") if pair)
            items = [
                item
                for at, item in self.objects.items()
                if at.startswith(f"{path}/") and wanted.items() <= item["metadata"].get("labels", {}).items()
            ]
            return 200, {"kind": "List", "apiVersion": "v1", "metadata": {}, "items": items}
        return _failure(404, "NotFound", f"{path} not found")

    @contextmanager
    def serving(self, place: Path) -> Iterator[Path]:
        """A configuration for kubectl that leads here."""
        api = self

        class Handler(BaseHTTPRequestHandler):
            def do(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                code, content = api.answer(self.command, self.path, body)
                text = content if isinstance(content, str) else json.dumps(content)
                self.send_response(code)
                self.send_header("Content-Type", "text/plain" if isinstance(content, str) else "application/json")
                self.send_header("Content-Length", str(len(text.encode())))
                self.end_headers()
                self.wfile.write(text.encode())

            do_GET = do_POST = do_PATCH = do

            def log_message(self, format: str, *arguments: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        file = place / "kubeconfig"
        file.write_text(json.dumps(_kubeconfig(server.server_address[1])))
        try:
            yield file
        finally:
            server.shutdown()
            server.server_close()
            thread.join(timeout=10)


def _kubeconfig(port: int) -> dict:
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "clusters": [{"name": "test", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "me"}}],
        "users": [{"name": "me", "user": {}}],
    }


def _group(path: str) -> dict:
    _, _, group, version = path.split("/")
    one = {"groupVersion": f"{group}/{version}", "version": version}
    return {"name": group, "versions": [one], "preferredVersion": one}


def _validates(path: str) -> dict:
    """The part of OpenAPI by which kubectl knows that the server validates fields, and does not itself."""
    group, version = path.split("/")[-2:] if path.startswith("/apis") else ("", "v1")
    field_validation = [{"name": "fieldValidation", "in": "query", "schema": {"type": "string"}}]
    return {
        "openapi": "3.0.0",
        "paths": {
            f"{path}/namespaces/{{namespace}}/{plural}/{{name}}": {
                "patch": {
                    "parameters": field_validation,
                    "x-kubernetes-group-version-kind": {"group": group, "version": version, "kind": kind},
                }
            }
            for plural, kind in RESOURCES[path]
        },
    }


def _resources(path: str) -> dict:
    return {
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": path.removeprefix("/apis/").removeprefix("/api/"),
        "resources": [
            {"name": plural, "singularName": kind.lower(), "namespaced": True, "kind": kind, "verbs": VERBS}
            for plural, kind in RESOURCES[path]
        ],
    }


def _failure(code: int, reason: str, message: str) -> tuple[int, dict]:
    status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "code": code}
    return code, status | {"message": message}


def _merge(target: dict, change: dict) -> None:
    """RFC 7386."""
    for key, value in change.items():
        if value is None:
            target.pop(key, None)
        elif isinstance(value, dict) and isinstance(target.get(key), dict):
            _merge(target[key], value)
        else:
            target[key] = value
