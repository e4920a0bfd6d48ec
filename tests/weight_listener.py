"""A receiver of weights without an engine."""

import threading
import time

import torch

from ray_rl.weight_sync.buckets import bucket_bytes, plan_buckets, unpack
from ray_rl.weight_sync.gloo_group import GlooGroup


class WeightListener(threading.Thread):
    """Joins a transfer group in place of an engine, and keeps what it receives.

    Leaves after `stops_after` buckets, or stalls before the first until it is released, if told to.
    """

    def __init__(self, rendezvous, rank, specs, *, stops_after=None, stalls=False):
        super().__init__(daemon=True)
        self.received = {}
        self.error = None
        self.took_s = None
        self._rendezvous, self._rank, self._specs = rendezvous, rank, specs
        self._stops_after = stops_after
        self._stalls = threading.Event() if stalls else None
        self.start()

    def run(self):
        there = self._rendezvous
        group = GlooGroup(
            address=there.address, port=there.port, rank=self._rank, world=there.world, timeout_s=there.timeout_s
        )
        start_s = time.monotonic()
        try:
            for i, bucket in enumerate(plan_buckets(self._specs, capacity_bytes=there.capacity_bytes)):
                if i == self._stops_after:
                    return
                if self._stalls is not None:
                    self._stalls.wait(60)
                    return
                buffer = torch.empty(bucket_bytes(bucket), dtype=torch.uint8)
                group.broadcast(buffer).wait()
                self.received |= {name: view.clone() for name, view in unpack(buffer, bucket)}
        except RuntimeError as error:
            self.error = error
        finally:
            self.took_s = time.monotonic() - start_s
            del group

    def release(self):
        self._stalls.set()
        self.join(10)
