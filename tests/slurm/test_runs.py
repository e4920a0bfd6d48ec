"""The demo's configuration under a real Slurm, across three virtual hosts."""

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(420)]


def test_plain(demo):
    job = demo("plain", "run.steps=2", "train.workers=2")
    assert job.wait_for_end() == "COMPLETED", job.everything()
    print(job.everything())
