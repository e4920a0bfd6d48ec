"""Exit code 2 under KubeRay: the controller tries every failure again, so the driver tells it not to.

The controller knows only that a job failed, and compares the number of failures with `backoffLimit` when it sees that.
So the limit becomes 0 before the driver ends. Needs an account that may patch the RayJob.
"""

from __future__ import annotations

import json
import ssl
import urllib.request
from collections.abc import Mapping
from pathlib import Path

RAY_JOB = "RAY_RL_RAY_JOB"
"""Variable of the head's container: the name of its RayJob."""
OF_A_RAY_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Variable that Ray gives to what it runs as a job, and to nothing else in the same container."""
ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Where Kubernetes puts the token of a pod's account."""
LIMIT_S = 15.0


def forbid_retries(environment: Mapping[str, str], *, account: Path = ACCOUNT) -> str | None:
    """Sets the `backoffLimit` of the RayJob that we are the driver of to 0.

    Returns:
        What happened, for people; None where we are not the driver of a RayJob.
    """
    name = environment.get(RAY_JOB)
    if name is None or OF_A_RAY_JOB not in environment:
        return None
    try:
        _patch(name, environment, account)
    except OSError as error:
        return f"RayJob {name} could not be told, and will try again: {error}"
    return f"RayJob {name} will not try again"


def _patch(name: str, environment: Mapping[str, str], account: Path) -> None:
    host, port = environment.get("KUBERNETES_SERVICE_HOST"), environment.get("KUBERNETES_SERVICE_PORT", "443")
    if host is None:
        raise OSError("KUBERNETES_SERVICE_HOST is not set, so there is no API server to ask")
    namespace = (account / "namespace").read_text(encoding="utf-8").strip()
    request = urllib.request.Request(
        f"https://{f'[{host}]' if ':' in host else host}:{port}/apis/ray.io/v1/namespaces/{namespace}/rayjobs/{name}",
        data=json.dumps({"spec": {"backoffLimit": 0}}).encode(),
        method="PATCH",
        headers={
            "Authorization": f"Bearer {(account / 'token').read_text(encoding='utf-8').strip()}",
            "Content-Type": "application/merge-patch+json",
        },
    )
    # No proxy: the address is one of the cluster's own.
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}),
        urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile=str(account / "ca.crt"))),
    )
    opener.open(request, timeout=LIMIT_S).close()
