"""Tests that need GPUs: `make test-gpu`. Without one each fails; those that need more than there are say so."""

import pytest

from ray_rl.config.gpus import visible_gpu_count


@pytest.fixture(autouse=True)
def enough_gpus(request):
    """The GPUs that the test's nearest marker `gpu(count)` asks for."""
    wanted = request.node.get_closest_marker("gpu").args[0]
    present = visible_gpu_count()
    if present == 0:
        pytest.fail("this machine has no GPU that CUDA may use: nothing was tested", pytrace=False)
    if present < wanted:
        pytest.skip(f"needs {wanted} GPUs, and this machine has {present}")
