"""What the tests of manifests need: the schemas of KubeRay's kinds, strictly applied, and kubectl."""

import json
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator

ROOT = Path(__file__).parents[3]
CRDS = ROOT.parent / "shared" / "kubernetes"
NO_CRDS = f"no CRDs of KubeRay in {CRDS}" if not (CRDS / "ray.io_rayjobs.yaml").is_file() else None
"""Why nothing can be validated here."""
KUBECTL_MINOR = 27
"""First 1.x that asks servers to validate fields, as OpenAPI v3 says they do; overlays need 1.21."""


@cache
def crd(kind: str) -> dict[str, Any]:
    """The OpenAPI schema of version v1."""
    text = (CRDS / f"ray.io_{kind.lower()}s.yaml").read_text(encoding="utf-8")
    versions = yaml.load(text, Loader=yaml.CSafeLoader)["spec"]["versions"]
    return next(version["schema"]["openAPIV3Schema"] for version in versions if version["name"] == "v1")


@cache
def _validator(kind: str) -> Draft202012Validator:
    schema = _strict(crd(kind))
    schema["properties"]["metadata"] = {"type": "object"}
    return Draft202012Validator(schema)


def schema_errors(manifest: dict[str, Any]) -> list[str]:
    """Path and message of every violation in a RayJob or RayCluster."""
    errors = _validator(manifest["kind"]).iter_errors(manifest)
    return [f"{'/'.join(map(str, error.absolute_path))}: {error.message}" for error in errors]


def _strict(schema: Any) -> Any:
    """JSON Schema that means what the API server does with a structural schema and strict field validation."""
    if isinstance(schema, list):
        return [_strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    found = {
        key: value if key in ("enum", "default", "example") else _strict(value)
        for key, value in schema.items()
        if not key.startswith("x-kubernetes-")
    }
    if schema.get("x-kubernetes-int-or-string"):
        found.pop("type", None)
        found["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    if schema.get("nullable") and isinstance(found.get("type"), str):
        found["type"] = [found["type"], "null"]
    properties = schema.get("properties")
    if isinstance(properties, dict) and schema.get("type") == "object":
        keeps = schema.get("x-kubernetes-preserve-unknown-fields")
        if "additionalProperties" not in schema and not keeps:
            found["additionalProperties"] = False
        if "required" in found:  # the API server fills defaults in first
            found["required"] = [key for key in found["required"] if "default" not in properties.get(key, {})]
    return found


@cache
def without_kubectl() -> str | None:
    """Why kubectl cannot be used here; None where it can."""
    remedy = f"kubectl 1.{KUBECTL_MINOR} or newer is needed (https://kubernetes.io/docs/tasks/tools; Debian's is older)"
    if shutil.which("kubectl") is None:
        return remedy
    command = ["kubectl", "version", "--client", "-o", "json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    minor = int(re.sub(r"\D.*", "", json.loads(done.stdout)["clientVersion"]["minor"]))
    return None if minor >= KUBECTL_MINOR else f"{remedy}; this is 1.{minor}"
