"""The trainer under DeepSpeed over NCCL: ZeRO-3 gives the gradient that the batch has, written out."""

import numpy as np
import pytest
import torch

from ray_rl.config import RunConfig
from tests.algorithm import algorithm
from tests.system.cluster.gradients import BATCH, EVERY_TERM, EXACT, PARTITION_ALL, plain_gradient, read_gradient
from tests.system.cluster.ranks import Ranks
from tests.unit.models.tiny import relative_error, tiny_llama


@pytest.fixture(params=[pytest.param(1, marks=pytest.mark.gpu(1)), pytest.param(2, marks=pytest.mark.gpu(2))])
def ranks(request):
    started = Ranks(request.param, has_gpus=True)
    yield started
    started.close()


def test_the_gradient_under_zero_3_is_that_of_the_losses_written_out(ranks, tmp_path):
    tiny_llama().save_pretrained(tmp_path)
    config = RunConfig.model_validate(
        {
            "run": {"name": "zero", "steps": 1},
            "model": {"path": str(tmp_path), "dtype": "float32"},
            "data": {"kind": "addition"},
            "rewards": [{"kind": "number"}],
            "algorithm": algorithm(**EVERY_TERM),
            "train": {
                "workers": ranks.world,
                "zero_stage": 3,
                "attention": "sdpa",
                "packing": "padded",
                "logit_chunk_tokens": 2,
                "deepspeed": PARTITION_ALL,
            },
            "cluster": {"accelerator": "gpu"},
        }
    )
    for gradient in ranks.run(read_gradient, config, str(tmp_path), BATCH):
        assert np.isfinite(gradient).all()
        assert relative_error(torch.from_numpy(gradient), plain_gradient("token_mean")) < EXACT
