"""The plugin that vLLM loads in each of its processes (entry point `vllm.general_plugins`)."""

from ray_rl.imports import collect_as_usual

GLOO, SHARED_MEMORY, NCCL, IPC = "ray_rl_gloo", "ray_rl_shared_memory", "ray_rl_nccl", "ray_rl_ipc"
"""Names of our weight-transfer backends in vLLM's configuration."""

RECEIVERS = {
    GLOO: ("ray_rl.weight_sync.receivers.gloo", "GlooReceiver"),
    IPC: ("ray_rl.weight_sync.receivers.ipc", "IpcReceiver"),
    NCCL: ("ray_rl.weight_sync.receivers.nccl", "NcclReceiver"),
    SHARED_MEMORY: ("ray_rl.weight_sync.receivers.shared_memory", "SharedMemoryReceiver"),
}

ADAPTER_WORKER = "ray_rl.weight_sync.receivers.adapter.AdapterWorker"
"""The class whose methods vLLM's workers get if they serve an adapter."""


def register() -> None:
    """Registers our receivers with vLLM by name: they are imported when an engine needs one."""
    collect_as_usual()  # This process has imported vLLM: see `imports.quicken_spawned`.
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    for backend, (module, receiver) in RECEIVERS.items():
        if backend not in WeightTransferEngineFactory._registry:
            WeightTransferEngineFactory.register_engine(backend, module, receiver)
