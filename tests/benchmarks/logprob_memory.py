"""Peak memory of the log-probabilities of T tokens, forward and backward, against the [T, V] log-softmax.

Counted is what torch allocates, by its own profiler, beyond hidden states, a frozen head and the gradient that is there
already. (A head that learns adds its gradient, and libraries their packing buffers: the same to all.)
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from ray_rl.algorithms.logprobs import chunked_logprobs

TOKENS, WIDTH, VOCABULARY = 4096, 576, 49152
CHUNKS = (128, 256, 512, 1024)
MIB = 2**20
FULL_BYTES = TOKENS * VOCABULARY * 4


def peak_bytes(action: Callable[[], None]) -> int:
    """The most that was allocated at once while it ran, above what was there before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        action()
    with tempfile.TemporaryDirectory() as scratch:
        trace = Path(scratch) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    changes = sorted((event["ts"], event["args"]["Bytes"]) for event in events if event.get("name") == "[memory]")
    return max(accumulate(size for _, size in changes))


def peak_of(chunk_tokens: int | None) -> int:
    """Bytes of so many tokens at a time; None stands for the full log-softmax."""
    torch.manual_seed(0)
    head = torch.nn.Linear(WIDTH, VOCABULARY, bias=False).requires_grad_(False)
    labels = torch.randint(VOCABULARY, (TOKENS,))
    hidden = torch.randn(TOKENS, WIDTH, requires_grad=True)
    hidden.grad = torch.zeros_like(hidden)

    def logprobs() -> Tensor:
        if chunk_tokens is None:
            return head(hidden).log_softmax(-1).gather(1, labels[:, None])[:, 0]
        return chunked_logprobs(hidden, labels, head, chunk_tokens=chunk_tokens)[0]

    def action() -> None:
        logprobs().sum().backward()

    return peak_bytes(action)


def main() -> None:
    title = f"{TOKENS} log-probabilities over {VOCABULARY} words, forward and backward"
    table = Table(title=title)
    for column in ("what", "peak MiB", f"of one [T, V] in float32 ({FULL_BYTES / MIB:.0f} MiB)"):
        table.add_column(column, justify="left" if column == "what" else "right")
    for chunk_tokens in (None, *CHUNKS):
        used = peak_of(chunk_tokens)
        what = "log_softmax of all" if chunk_tokens is None else f"train.logit_chunk_tokens={chunk_tokens}"
        table.add_row(what, f"{used / MIB:.0f}", f"{used / FULL_BYTES:.1%}")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
