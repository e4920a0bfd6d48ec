"""The reference of preference losses: its log-probabilities of examples, stored before the first step or live."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ray_rl.algorithms.kto import kto_baseline, mismatched_rows
from ray_rl.errors import DataError
from ray_rl.loops.finite import require_finite_reference
from ray_rl.metrics.run import Run
from ray_rl.metrics.whole_pieces import PieceFile, write_whole
from ray_rl.types import Example, OfflineBatch, TokenBatch
from ray_rl.weight_sync.audit import Scorer

if TYPE_CHECKING:
    from numpy.typing import NDArray

Pack = Callable[[Sequence[Example]], OfflineBatch]
"""Packs examples into a batch."""
SCORED_AT_ONCE = 64
"""Number of examples whose log-probabilities are computed and stored together, if a batch of the run has fewer."""
NOTES = 10
"""Number of progress messages while all examples are scored."""


class Reference(Protocol):
    """The log-probabilities of a frozen model."""

    async def prepare(self, run: Run) -> None:
        """Prepares the run, while its actor still has its first weights."""

    async def sums(self, examples: Sequence[Example], batch: OfflineBatch) -> NDArray[np.float64]:
        """Returns the sum over the loss tokens of each row of `batch`, which has these examples, float64 [R]."""


@dataclass(frozen=True, slots=True)
class LiveReference:
    """A frozen model in workers of its own."""

    scorer: Scorer

    async def prepare(self, run: Run) -> None:
        """Does nothing."""

    async def sums(self, examples: Sequence[Example], batch: OfflineBatch) -> NDArray[np.float64]:
        """Scores the batch."""
        return row_sums(await self.scorer.logprobs(batch), batch)


class StoredReference:
    """The first weights of the actor, which score every example once. A file of the run folder keeps the numbers.

    The file has one JSON object a line: first what the numbers depend on besides the example, then id, digest and sums
    of each example. Examples are scored in groups that depend only on their order, so that a run that was killed in
    between has the same numbers in the end.
    """

    def __init__(
        self,
        file: Path,
        examples: Sequence[Example],
        *,
        scorer: Scorer,
        pack: Pack,
        batch_size: int,
        depends_on: Mapping[str, str | None],
        is_resumed: bool,
        model_before: str | None = None,
        pairs: int = 0,
    ) -> None:
        """Makes a reference that has no numbers before `prepare`.

        Args:
            file: the file with the numbers; it need not exist.
            examples: all examples that will be asked for.
            scorer: the actor.
            pack: packs examples.
            batch_size: number of examples of a training step.
            depends_on: what the numbers depend on, by name: `model`, the digest of its weights, and others.
            is_resumed: whether the run continues from a checkpoint.
            model_before: the digest of `model` when that checkpoint was written, if it is known: for a lost file.
            pairs: how many of the examples, the last ones, are the mismatched pairs of KTO's baseline.
        """
        self._file, self._examples = file, examples
        self._scorer, self._pack, self._size = scorer, pack, max(batch_size, SCORED_AT_ONCE)
        self._depends_on, self._is_resumed, self._model_before = dict(depends_on), is_resumed, model_before
        self._pairs = pairs
        self._known: dict[tuple[str, str], list[float]] = {}
        self._keys = [(each.id, each.digest) for each in examples]

    async def prepare(self, run: Run) -> None:
        """Reads the file, and computes and stores the numbers that it lacks.

        Raises:
            DataError: numbers are lacking, and the model has changed since the run started.
            TrainingError: a log-probability is not finite.
            RecordError: the disk is full.
        """
        self._read(run)
        groups = [slice(start, start + self._size) for start in range(0, len(self._examples), self._size)]
        missing = [group for group in groups if any(key not in self._known for key in self._keys[group])]
        if not missing:
            return
        file = PieceFile(self._file, keep=True)
        try:
            for index, group in enumerate(missing):
                if index % max(1, len(missing) // NOTES) == 0:
                    run.note(f"reference log-probabilities: {group.start} of {self._counted()}")
                await self._score(group, file)
        finally:
            file.close()

    async def sums(self, examples: Sequence[Example], batch: OfflineBatch) -> NDArray[np.float64]:
        """Returns the stored numbers."""
        return np.array([value for each in examples for value in self._known[each.id, each.digest]], np.float64)

    def _counted(self) -> str:
        """Returns the number of sequences to score, in words: KTO's mismatched pairs are no examples of the data."""
        pairs = f" and {self._pairs} mismatched pairs" if self._pairs else ""
        return f"{len(self._examples) - self._pairs} examples{pairs}"

    async def _score(self, group: slice, file: PieceFile) -> None:
        """Scores a group of examples, and stores the numbers of those that were not known."""
        batch = self._pack(self._examples[group])
        sums_R = row_sums(await self._scorer.logprobs(batch), batch)
        require_finite_reference(replace(batch, reference_R=sums_R))
        lines = []
        for key, sums in zip(self._keys[group], sums_R.reshape(-1, batch.group_size).tolist(), strict=True):
            if key not in self._known:
                self._known[key] = sums
                lines.append(_line({"id": key[0], "digest": key[1], "sums": sums}))
        file.append(b"".join(lines))

    def _read(self, run: Run) -> None:
        """Reads the numbers of an earlier start that are still right. Then more can be appended to the file."""
        header, rows = _content(self._file)
        if not rows:
            header = {**self._depends_on, **({"model": self._model_before} if self._model_before else {})}
        wanted = set(self._keys)
        known = {key: sums for key, sums in rows.items() if key in wanted}
        changed = [name for name in self._depends_on if header.get(name) != self._depends_on[name]]
        if changed:
            text = ", ".join(f"{name} {header.get(name)} then, {self._depends_on[name]} now" for name in changed)
            is_complete = len(known) == len(wanted)
            if self._is_resumed and is_complete:
                run.note(f"{self._file.name}: keeping the reference with which the run started ({text})")
                self._known = known
                return
            if self._is_resumed and "model" in changed:
                raise DataError(
                    f"{self._file}: the reference is not that with which the run started ({text}), and it lacks "
                    f"{len(wanted) - len(known)} of {self._counted()}; put back the weights of model.path"
                )
            run.note(f"{self._file.name}: computing all log-probabilities of the reference again ({text})")
            known = {}
        self._known = known
        lines = [_line(self._depends_on), *(_line({"id": i, "digest": d, "sums": s}) for (i, d), s in known.items())]
        write_whole(self._file, iter(lines))


class Baseline:
    """KTO's baseline: policy and reference on the answers of other prompts, in place of the right ones.

    Each example gets the answer of one other example for the whole run, so that the reference scores each pair once.
    """

    def __init__(self, partners: Mapping[str, Example], *, actor: Scorer, reference: Reference, pack: Pack) -> None:
        """Makes the baseline; `partners` is what `mismatched` returns."""
        self._partners, self._pack = partners, pack
        self._actor, self._reference = actor, reference

    async def of(self, *batches: Sequence[Example], may_skip: bool = False) -> float:
        """Returns `kto_baseline` of examples with the current weights; 0 if none of them has a partner.

        Args:
            batches: the examples, in batches that are scored one after the other.
            may_skip: leave out partners for which the reference has no finite log-probability.
        """
        log_ratios_M = np.concatenate([await self._log_ratios(examples, may_skip=may_skip) for examples in batches])
        return kto_baseline(log_ratios_M) if len(log_ratios_M) else 0.0

    async def _log_ratios(self, examples: Sequence[Example], *, may_skip: bool) -> NDArray[np.float64]:
        pairs = [self._partners[each.id] for each in examples if each.id in self._partners]
        if not pairs:
            return np.zeros(0)
        batch = self._pack(pairs)
        policy_M = row_sums(await self._actor.logprobs(batch), batch)
        reference_M = await self._reference.sums(pairs, batch)
        known_M = np.isfinite(reference_M) | (not may_skip)
        return (policy_M - reference_M)[known_M]


def mismatched(examples: Sequence[Example]) -> dict[str, Example]:
    """Returns the prompt of each example with the answer of another prompt, by id; see `mismatched_rows`.

    Leaves out those that are longer than all examples: they may not fit into the model's context, or into memory.

    Raises:
        DataError: all prompts are the same.
    """
    require_several_prompts(examples)
    rows = mismatched_rows([each.prompt_ids for each in examples])
    pairs = [(examples[row], examples[other]) for row, other in rows.tolist()]
    longest = max(map(_length, examples))
    mixed = {one.id: replace(one, id=f"{one.id} with {other.id}", answers=other.answers) for one, other in pairs}
    return {id: each for id, each in mixed.items() if _length(each) <= longest}


def require_several_prompts(examples: Sequence[Example]) -> None:
    """Checks that KTO's baseline can give each prompt the answer to another one.

    Raises:
        DataError: all prompts are the same.
    """
    if len({each.prompt_ids for each in examples}) < 2:
        raise DataError(
            f"data: all {len(examples)} examples have the same prompt, but KTO's baseline gives each prompt the answer "
            "to another one; add examples with other prompts"
        )


def _length(example: Example) -> int:
    return len(example.prompt_ids) + max(len(answer.token_ids) for answer in example.answers)


def row_sums(values_RT: NDArray[np.float32], batch: TokenBatch) -> NDArray[np.float64]:
    """Returns the sum over the loss tokens of each row, float64 [R]."""
    sums_R: NDArray[np.float64] = np.where(batch.loss_mask_RT, values_RT, 0.0).sum(1, dtype=np.float64)
    return sums_R


def _content(file: Path) -> tuple[dict[str, Any], dict[tuple[str, str], list[float]]]:
    """Returns the first line and the numbers of a file. Leaves out what a kill left incomplete at its end."""
    records = list(_records(file))
    if not records:
        return {}, {}
    header, *rows = records
    return header, {(row["id"], row["digest"]): row["sums"] for row in rows}


def _records(file: Path) -> Iterator[dict[str, Any]]:
    if not file.is_file():
        return
    for line in file.read_bytes().splitlines(keepends=True):
        if line.endswith(b"\n"):
            yield json.loads(line)


def _line(record: Mapping[str, Any]) -> bytes:
    return f"{json.dumps(record)}\n".encode()
