"""Every exception that `ray_rl` raises on purpose.

    RayRLError
    |-- UserError                the user's configuration or input: exit code 2
    |   |-- ConfigError          a key, a value or a combination of values
    |   `-- DataError            a prompt file, a row, a model folder
    |-- RewardError              a reward function raised or returned nan
    |-- Preempted                told to stop; everything is saved: exit code 75
    |-- TrainingError            nan or inf in a loss, a gradient or a log-probability
    `-- OutsideError             something outside this process failed
        |-- CheckpointError      a checkpoint that cannot be written, or does not verify
        |-- ClusterError         Ray: placement, a lost worker, a wait that ran out
        |   `-- WorkerLost       its process is gone
        |-- EngineError          a vLLM engine
        |   `-- EngineLost       it died or hangs: another can do what it was asked
        |-- FolderHeld           another process trains in the run folder
        |-- RecordError          the run folder cannot be written: a full disk
        |-- SandboxError         a function in a worker process raised
        |   |-- NotLoaded        its module could not be imported
        |   |-- ProcessDied      the process ended during the call
        |   `-- SandboxClosed    the worker was closed
        `-- WeightSyncError      a publish that did not complete
            `-- WeightMismatch   it did, and an engine has not got what was sent

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
    """A loss, a gradient or a log-probability that is not finite; nothing was applied."""


class OutsideError(RayRLError, RuntimeError):
    """Something outside this process failed."""


class CheckpointError(OutsideError):
    """A checkpoint could not be written, or is not what its manifest says."""


class ClusterError(OutsideError):
    """Ray could not place, reach or wait for a worker."""


class WorkerLost(ClusterError):
    """The process of a worker is gone."""


class EngineError(OutsideError):
    """A vLLM engine failed or answered nonsense."""


class EngineLost(EngineError):
    """An engine died or was given up because it hangs; what it was asked may be asked of another."""


class FolderHeld(OutsideError):
    """Another live process trains in the run folder; the command can be run again when that process has ended."""


class RecordError(OutsideError):
    """A file of the run folder could not be written; what it held before is whole."""


class SandboxError(OutsideError):
    """A function in a worker process raised, or took the process down."""


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
