"""What the kubelet makes of a container's variables and arguments (k8s.io/kubernetes/third_party/forked/expansion)."""

import re
from collections.abc import Mapping


def expanded(text: str, known: Mapping[str, str]) -> str:
    """`$$` becomes `$`, `$(NAME)` the variable where it is known; everything else stays."""

    def one(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        return known.get(match[1], match[0])

    return re.sub(r"\$\$|\$\(([^)]*)\)", one, text)


def variables(container: Mapping) -> dict[str, str]:
    """The environment of a container: a variable sees those before it."""
    known: dict[str, str] = {}
    for entry in container.get("env", []):
        known[entry["name"]] = expanded(entry["value"], known)
    return known
