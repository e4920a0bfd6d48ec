"""`python -m ray_rl.cli.roll_call NODES`: for launchers; see `ray_rl.cluster.roll_call`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ray_rl.errors import ClusterError
from ray_rl.exit_codes import FAILED


def main(argv: Sequence[str] | None = None) -> int:
    """Waits for all nodes, writes the file that says so, and returns 1 when a node is lost or does not come."""
    from ray_rl.cluster.roll_call import await_nodes, living, lost_of
    from ray_rl.cluster.session import joined

    parser = argparse.ArgumentParser(description="Waits for the nodes of a Ray cluster, then watches them.")
    parser.add_argument("nodes", type=int)
    parser.add_argument("--timeout-s", type=float, required=True, help="for all nodes to join")
    parser.add_argument("--ready", type=Path, required=True, help="file to make when they have")
    arguments = parser.parse_args(argv)
    try:
        with joined("auto"):
            await_nodes(arguments.nodes, timeout_s=arguments.timeout_s, note=lambda text: print(text, flush=True))
            arguments.ready.touch()
            lost = lost_of(living())
    except ClusterError as error:
        print(error, file=sys.stderr)
        return FAILED
    print(f"lost {', '.join(sorted(lost))}", file=sys.stderr)
    return FAILED


if __name__ == "__main__":
    raise SystemExit(main())
