"""Prevents retries after exit code 2 under KubeRay, whose controller retries every failure.

The controller knows only that a job failed, and then compares the number of failures with `backoffLimit`. So the driver
sets the limit to 0 before it ends. It needs an account that may patch the RayJob.
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
"""Variable that Ray sets in processes of a job, and in no other process of the same container."""
ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Where Kubernetes puts the token of a pod's account."""
LIMIT_S = 15.0


def forbid_retries(environment: Mapping[str, str], *, account: Path = ACCOUNT) -> str | None:
    """Sets `backoffLimit` to 0 in the RayJob whose driver this process is.

    Returns:
        A message about the result; None if this process is not the driver of a RayJob.
    """
    name = environment.get(RAY_JOB)
    if name is None or OF_A_RAY_JOB not in environment:
        return None
    try:
        _patch(name, environment, account)
    except OSError as error:
        return f"RayJob {name} could not be changed and will retry: {error}"
    return f"RayJob {name} will not retry"


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
    # No proxy: the address is inside the cluster.
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}),
        urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile=str(account / "ca.crt"))),
    )
    opener.open(request, timeout=LIMIT_S).close()
