"""Every exception that `ray_rl` raises on purpose.

    RayRLError
    |-- UserError                the user's configuration or input: exit code 2
    |   |-- ConfigError          a key, a value or a combination of values
    |   `-- DataError            a prompt file, a row, a model folder
    |-- RewardError              a reward function raised or returned nan
    |-- Preempted                stopped on request, with everything saved: exit code 75
    |-- TrainingError            nan or inf in a loss, a gradient or a log-probability
    `-- OutsideError             something outside this process failed
        |-- CheckpointError      a checkpoint that cannot be written, or does not verify
        |-- ClusterError         Ray: placement, a lost worker, a wait that ran out
        |   `-- WorkerLost       the worker's process has ended
        |-- EngineError          a vLLM engine
        |   `-- EngineLost       it died or stopped responding: the request can be retried elsewhere
        |-- EnvironmentFailed    the environment of an episode raised or hung, or its process ended
        |-- FolderHeld           another process is using the run folder
        |-- RecordError          the run folder cannot be written: a full disk
        |-- SandboxError         a function in a worker process raised
        |   |-- NotLoaded        its module could not be imported
        |   |-- ProcessDied      the process ended during the call
        |   `-- SandboxClosed    the worker was closed
        `-- WeightSyncError      a publish that did not complete
            `-- WeightMismatch   it completed, but an engine does not hold what was sent

All carry one message and nothing else, so that they pickle: they cross Ray.
"""


class RayRLError(Exception):
    """Root of the tree."""


class UserError(RayRLError):
    """The user's configuration or input is wrong; the message names the value and the remedy. Exit code 2."""


class ConfigError(UserError, ValueError):
    """A configuration key, value or combination."""


class DataError(UserError, ValueError):
    """A prompt source, one of its rows, or a model folder."""


class RewardError(RayRLError, RuntimeError):
    """A reward function raised, hung, or returned something that is not a finite number or None."""


class Preempted(RayRLError):
    """The run was told to stop and can be resumed. Exit code 75."""


class TrainingError(RayRLError, ArithmeticError):
    """A loss, a gradient or a log-probability is not finite. The optimizer step was not applied."""


class OutsideError(RayRLError, RuntimeError):
    """Something outside this process failed."""


class CheckpointError(OutsideError):
    """A checkpoint could not be written, or is not what its manifest says."""


class ClusterError(OutsideError):
    """Ray could not place or reach a worker, or a wait for one timed out."""


class WorkerLost(ClusterError):
    """The process of a worker has ended."""


class EngineError(OutsideError):
    """A vLLM engine failed or returned an invalid answer."""


class EngineLost(EngineError):
    """The engine died or stopped responding. The request can be retried on another engine."""


class EnvironmentFailed(OutsideError):
    """The environment of an episode raised, hung, answered with something else than a `Step`, or lost its process."""


class FolderHeld(OutsideError):
    """Another live process is using the run folder. Run the command again when that process has ended."""


class RecordError(OutsideError):
    """A file of the run folder could not be written. Its previous content is intact."""


class SandboxError(OutsideError):
    """A function in a worker process raised, or ended the process."""


class NotLoaded(SandboxError):
    """The module of a function could not be imported in a worker process: it raised, exited or hung."""


class ProcessDied(SandboxError):
    """The worker process ended during a call. The call can be retried: the next one starts another process."""


class SandboxClosed(SandboxError):
    """The worker was closed before or during the call."""


class WeightSyncError(OutsideError):
    """A publish did not complete, or an engine does not report the version that was sent."""


class WeightMismatch(WeightSyncError):
    """What an engine received, or serves, is not what the trainer sent."""
