"""Our receiver as it would be if nobody had noticed the packed copy of a tied head."""

from ray_rl.weight_sync.receivers.gloo import GlooReceiver


class WithoutRepack(GlooReceiver):
    def finish_weight_update(self) -> None:
        self.loading.finish(self.model, self.model_config)
