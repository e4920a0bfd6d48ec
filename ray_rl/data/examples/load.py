"""Loads the examples that `data:` describes: reads, tokenises, cleans, and holds out a share."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ray_rl.config.data import DataConfig, Mixture, RecordSource
from ray_rl.config.offline import TrainOn, Wanted
from ray_rl.data.chat import ChatTokenizer, uses_chat
from ray_rl.data.examples.held_out import is_held_out
from ray_rl.data.examples.hygiene import Hygiene, hygiene_of
from ray_rl.data.examples.reading import Reading, name_of, sources_of
from ray_rl.data.examples.report import reasons, shown_example, summary
from ray_rl.data.examples.tokenize import ExampleTokenizer
from ray_rl.data.formats.record import Dropped, Unusable
from ray_rl.data.layout import notes
from ray_rl.errors import DataError
from ray_rl.types import Example


@dataclass(frozen=True, slots=True)
class Examples:
    """The examples of a run."""

    kind: str
    """`data.kind`."""
    train: Sequence[Example]
    """The examples to train on, in the order of their source."""
    held_out: Sequence[Example]
    """The examples to evaluate, in the order of their source."""
    lines: Sequence[str]
    """Lines for the user: what the data is taken for, one example, and what was left out."""
    digests: Mapping[str, str]
    """Digests of the files or data sets by their name, and one of which of their examples are trained on."""
    tokens: str = ""
    """Digest of the tokens of all examples; of the chat template instead if this writes today's date, since a run may
    be resumed tomorrow. Empty for a part of a mixture."""


def load_examples(
    data: DataConfig,
    *,
    wanted: Wanted,
    tokenizer: ChatTokenizer,
    note: Callable[[str], None],
    train_on: TrainOn = "assistant",
    separator: str = "\n",
    rendered: bool = False,
) -> Examples:
    """Returns the examples that `data:` describes.

    Args:
        data: the section `data`.
        wanted: what the algorithm trains on.
        tokenizer: the tokenizer of the model.
        note: called with the progress of long work.
        train_on: the tokens of demonstrations with a loss.
        separator: the text after each step of a solution.
        rendered: comparisons are whole conversations (see `ExampleTokenizer`).

    Raises:
        DataError: a file, a data set or a row is wrong, with its place; or no example can be used.
        ConfigError: the source, the format or a column is wrong.
    """
    weights = [part.weight for part in data.parts] if isinstance(data, Mixture) else [1.0]
    seen: set[str] = set()
    train: list[Example] = []
    held_out: list[Example] = []
    lines: list[str] = []
    digests: dict[str, str] = {}
    sources = sources_of(data)
    for number, (source, weight) in enumerate(zip(sources, weights, strict=True)):
        loading = _Loading(
            source,
            tokens=ExampleTokenizer(
                tokenizer,
                chat=uses_chat(source),
                system_prompt=source.system_prompt,
                train_on=train_on,
                separator=separator,
                rendered=rendered,
            ),
            hygiene=hygiene_of(tokenizer, source, chat=uses_chat(source), seen=seen),
        )
        part = loading.load(wanted, tokenizer, note)
        if isinstance(data, Mixture):
            part = _as_part(part, number, weight)
        train += part.train
        held_out += part.held_out
        lines += part.lines
        digests |= part.digests
    _refuse_an_empty_side(train, held_out, share=data.held_out)
    digests["the list of examples"] = _hashed(example.id.encode() + b"\n" for example in train)
    dated = tokenizer.dated_template if any(map(uses_chat, sources)) else None
    tokens = _hashed([dated.encode()] if dated is not None else map(_tokens, [*train, *held_out]))
    return Examples(data.kind, train, held_out, lines, digests, tokens)


@dataclass(frozen=True, slots=True)
class _Loading:
    """Makes the examples of a source."""

    data: RecordSource
    tokens: ExampleTokenizer
    hygiene: Hygiene

    def load(self, wanted: Wanted, tokenizer: ChatTokenizer, note: Callable[[str], None]) -> Examples:
        """Loads all rows.

        Raises:
            DataError, ConfigError: as in `load_examples`.
        """
        reading = Reading(self.data, wanted=wanted, note=note)
        sides: tuple[list[Example], list[Example]] = ([], [])
        for example, is_held in self._examples(reading):
            sides[is_held].append(example)
        reading.refuse_wrong_rows()
        train, held_out = sides
        rows = len(reading.records)
        if not train and not held_out:
            why = "; ".join(filter(None, [reasons(self.hygiene), *reading.wrong_rows()]))
            raise DataError(f"{name_of(self.data)}: none of {rows:,} rows can be used: {why}")
        lines = [
            *notes(reading.records.digests),
            f"{name_of(self.data)} is read as {reading.form.name}: {reading.form.line}",
            *shown_example((train or held_out)[0], tokenizer),
            *summary(train, held_out, self.hygiene, wanted=wanted, rows=rows),
            *reading.wrong_rows(),
        ]
        return Examples(self.data.kind, train, held_out, lines, reading.records.digests)

    def _examples(self, reading: Reading) -> Iterator[tuple[Example, bool]]:
        """Yields the examples that are used, and whether they are held out."""
        for row, converted in reading.units():
            for number, record in enumerate(converted, start=1):
                if isinstance(record, Dropped):
                    self.hygiene.left_out[record.reason] += 1
                    continue
                id = row.id if len(converted) == 1 else f"{row.id}/{number}"
                try:
                    whole = self.tokens.example(record, id=id, where=row.where)
                except Unusable as unusable:
                    self.hygiene.left_out[str(unusable)] += 1
                    continue
                except DataError as error:
                    reading.fail(error)
                    continue
                example = self.hygiene.admitted(whole, where=row.where)
                if example is not None:
                    yield example, is_held_out(record.prompt, share=self.data.held_out)


def _as_part(part: Examples, number: int, weight: float) -> Examples:
    """Returns the examples of a part of a mixture, as often as its weight says, with ids that no other part has."""
    train = [
        replace(example, id=f"{number}/{example.id}")
        for example in part.train
        for _ in range(_times(f"{number}/{example.id}", weight))
    ]
    lines = [*part.lines, f"weight {weight:g}: {len(train):,} examples in an epoch"]
    held_out = [replace(example, id=f"{number}/{example.id}") for example in part.held_out]
    return replace(
        part,
        train=train,
        held_out=held_out,
        lines=lines,
        digests={f"{number}/{name}": digest for name, digest in part.digests.items()},
    )


def _times(id: str, weight: float) -> int:
    """Returns how often an example occurs in an epoch: a hash of its id decides about the fraction of the weight."""
    place = int.from_bytes(hashlib.blake2b(id.encode(), digest_size=7).digest()) / 2**56
    return int(weight) + (place < weight % 1)


def _refuse_an_empty_side(train: Sequence[Example], held_out: Sequence[Example], *, share: float) -> None:
    """Refuses examples of which none is trained on, or none is held out although a share should be.

    Raises:
        DataError: one of these lists is empty.
    """
    if not train and not share:
        raise DataError("data.parts: the weights leave no example to train on; raise one of them")
    empty = "left to train on" if not train else "held out" if share and not held_out else None
    if empty is not None:
        raise DataError(
            f"data.held_out={share:g}: of {len(train) + len(held_out):,} examples, none is {empty}; a hash of the "
            "prompt decides; set another share, or use data with more prompts"
        )


def _hashed(parts: Iterable[bytes]) -> str:
    hashed = hashlib.blake2b(digest_size=16)
    for part in parts:
        hashed.update(part)
    return f"blake2b:{hashed.hexdigest()}"


def _tokens(example: Example) -> bytes:
    """Returns the tokens of an example, and which of them are trained on."""
    rows = [np.asarray(example.prompt_ids, np.int32)]
    for answer in example.answers:
        rows += [answer.token_ids, answer.loss_mask.astype(np.int32)]
    return b"".join(len(row).to_bytes(8) + row.tobytes() for row in rows)
