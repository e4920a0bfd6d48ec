"""Computed rows: question i is a function of (seed, i)."""

from __future__ import annotations

import difflib
import random
from collections.abc import Mapping, Sequence

from ray_rl.config.data import Addition, Episodes, ReasoningGym
from ray_rl.data.rows import Row
from ray_rl.errors import ConfigError


class AdditionRows:
    """Questions like "What is 17+25? Answer with a number.", with the sum in column `answer`."""

    def __init__(self, config: Addition, *, seed: int) -> None:
        self._config = config
        self._seed = seed
        self.digests: Mapping[str, str] = {}
        self.notes: Sequence[str] = ()

    def __len__(self) -> int:
        return self._config.size

    def __getitem__(self, index: int) -> Row:
        # Seeding with text hashes it with SHA-512: neighbouring seeds and indices are unrelated.
        draw = random.Random(f"addition/{self._seed}/{index}")
        maximum = self._config.maximum
        if self._config.by_digits:
            maximum = min(maximum, 10 ** draw.randint(1, len(str(maximum))) - 1)
        left, right = draw.randint(0, maximum), draw.randint(0, maximum)
        return Row(f"addition/{index}", f"What is {left}+{right}? Answer with a number.", {"answer": str(left + right)})


class EpisodeRows:
    """The same prompt in every row: what differs is the environment."""

    def __init__(self, config: Episodes) -> None:
        self._config = config
        self.digests: Mapping[str, str] = {}
        self.notes: Sequence[str] = ()

    def __len__(self) -> int:
        return self._config.size

    def __getitem__(self, index: int) -> Row:
        return Row(f"episode/{index}", self._config.prompt, {})


class ReasoningGymRows:
    """Entries of a `reasoning_gym` task, with what its verifier needs in columns `entry` and `task`.

    Columns can be written as JSON, but keep the tuples of the package: some verifiers distinguish them from lists. A
    few tasks iterate over sets of strings (word_ladder, ransom_note, isomorphic_strings, knight_swap,
    polynomial_multiplication): their rows differ between processes unless PYTHONHASHSEED is set.
    """

    def __init__(self, config: ReasoningGym, *, seed: int) -> None:
        import reasoning_gym

        check_task(config.task)
        try:
            self._dataset = reasoning_gym.create_dataset(config.task, size=config.size, seed=seed, **config.options)
        except (TypeError, ValueError, AssertionError) as error:
            raise ConfigError(
                f"data.options={config.options} does not suit the task {config.task}: {error}; correct data.options"
            ) from error
        self._config = config
        self.digests: Mapping[str, str] = {}
        self.notes: Sequence[str] = ()

    def __len__(self) -> int:
        return self._config.size

    def __getitem__(self, index: int) -> Row:
        entry = self._dataset[index]
        task = {"name": self._config.task, "options": self._config.options}
        columns = {"answer": entry["answer"], "entry": entry, "task": task}
        return Row(f"{self._config.task}/{index}", entry["question"], columns)


def check_task(task: str) -> None:
    """Checks that `reasoning_gym` has the task.

    Raises:
        ConfigError: there is no such task; the message has the nearest names.
    """
    from reasoning_gym.factory import DATASETS

    if task not in DATASETS:
        near = difflib.get_close_matches(task, DATASETS, n=3, cutoff=0.5)
        raise ConfigError(
            f"data.task={task}: reasoning_gym has no such task; "
            + (f"nearest: {', '.join(near)}" if near else f"it has {', '.join(sorted(DATASETS))}")
        )
