"""All benchmarks, one after another, each in a process of its own: what one imports changes nothing for the next."""

import subprocess
import sys

NAMES = ("scheduler", "rewards", "logprob_memory", "update", "weight_sync", "startup", "end_to_end", "offline")

if __name__ == "__main__":
    for name in NAMES:
        subprocess.run([sys.executable, "-m", f"tests.benchmarks.{name}"], check=True, timeout=7200)
