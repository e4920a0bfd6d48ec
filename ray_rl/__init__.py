"""Post-training of large language models with reinforcement learning on Ray, DeepSpeed and vLLM."""

__version__ = "0.1.0"
