"""What vLLM calls in each of its processes (entry point `vllm.general_plugins`)."""

BACKEND = "ray_rl_gloo"
"""Name of our weight-transfer backend in vLLM's configuration."""


def register() -> None:
    """Makes the gloo receiver known to vLLM, by name: it is imported when an engine asks for it."""
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    if BACKEND not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(BACKEND, "ray_rl.weight_sync.gloo_receiver", "GlooReceiver")
