"""vLLM's workers with our methods, and with faults of vLLM that a test plants."""

from ray_rl.weight_sync.receivers.adapter import AdapterWorker


class FaultyWorker(AdapterWorker):
    """An adapter is kept, because its number is known, as vLLM's `add_lora` does without `load_inplace`."""

    def keep_adapter(self) -> None:
        """From now on."""
        manager = self.model_runner.lora_manager._adapter_manager
        manager.remove_all_adapters = lambda: None
        manager.remove_adapter = lambda number: False

    def mend(self) -> None:
        """As vLLM is."""
        manager = self.model_runner.lora_manager._adapter_manager
        del manager.remove_all_adapters, manager.remove_adapter
