"""Tells the user how examples look to the model, and what was left out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from ray_rl.config.offline import Wanted
from ray_rl.data.chat import ChatTokenizer
from ray_rl.data.examples.hygiene import Hygiene
from ray_rl.types import Answer, Example

SHOWN_CHARACTERS = 60
NAMES = {"demonstration": "demonstrations", "comparison": "pairs", "judged": "judged answers", "steps": "solutions"}


def shown_example(example: Example, tokenizer: ChatTokenizer) -> list[str]:
    """Returns an example as the model sees it: the end of its prompt, and what of its answers is trained on."""
    prompt = tokenizer.model_tokenizer.decode(example.prompt_ids, skip_special_tokens=False)
    lines = [f"one example, {example.id}: the prompt has {len(example.prompt_ids):,} tokens and ends {_end(prompt)}"]
    names = ("chosen", "rejected") if len(example.answers) == 2 else ("answer",)
    for name, answer in zip(names, example.answers, strict=True):
        lines.append(f"  {name}: {len(answer.token_ids):,} tokens, {_trained(example, answer, tokenizer)}")
    if example.label is not None:
        lines.append(f"  label: {'desirable' if example.label else 'undesirable'}")
    if example.margin is not None:
        lines.append(f"  margin: {example.margin:g}")
    return lines


def summary(
    train: Sequence[Example], held_out: Sequence[Example], hygiene: Hygiene, *, wanted: Wanted, rows: int
) -> Iterator[str]:
    """Yields lines with the numbers of examples, and of those that were left out or cut, by reason."""
    held = f", {len(held_out):,} held out" if held_out else ""
    yield f"rows: {rows:,}; {NAMES[wanted]} to train on: {len(train):,}{held}; {_lengths([*train, *held_out])}"
    if wanted == "judged":
        desirable = sum(example.label is True for example in train)
        yield f"desirable answers to train on: {desirable:,}; undesirable: {len(train) - desirable:,}"
        if desirable == len(train):
            yield (
                "all answers are desirable, and KTO learns from both kinds: add undesirable ones, or imitate these "
                "with algorithm.kind=sft"
            )
        elif not desirable:
            yield (
                "all answers are undesirable, and KTO learns from both kinds: without desirable ones, the model only "
                "learns what not to write; add some"
            )
    if hygiene.left_out:
        yield f"{hygiene.left_out.total():,} left out: {reasons(hygiene)}"
    if hygiene.longest > hygiene.max_tokens:
        cut = f"the prompts of {hygiene.cut:,} were cut on the left; " if hygiene.cut else ""
        yield f"{cut}the longest sequence had {hygiene.longest:,} tokens, and data.max_tokens={hygiene.max_tokens}"
    if hygiene.repeated and not hygiene.deduplicate:
        yield f"{hygiene.repeated:,} are the same as an earlier one; data.deduplicate: true leaves them out"


def reasons(hygiene: Hygiene) -> str:
    """Returns why examples were left out, each reason with its number of examples, the most frequent one first."""
    return "; ".join(f"{reason} ({count:,})" for reason, count in hygiene.left_out.most_common())


def _lengths(examples: Sequence[Example]) -> str:
    lengths = [len(each.prompt_ids) + len(answer.token_ids) for each in examples for answer in each.answers]
    trained = sum(int(answer.loss_mask.sum()) for each in examples for answer in each.answers)
    mean, mean_trained = np.mean(lengths), trained / len(lengths)
    return f"{mean:,.0f} tokens each on average, {max(lengths):,} at most; {mean_trained:,.0f} of them are trained on"


def _trained(example: Example, answer: Answer, tokenizer: ChatTokenizer) -> str:
    if example.step_labels is not None:
        labels = ", ".join(f"{label:g}" for label in example.step_labels)
        return f"{_both_ends(_text(answer.token_ids, tokenizer))}, with labels at the ends of steps: {labels}"
    edges = np.flatnonzero(np.diff(answer.loss_mask, prepend=False, append=False))
    parts = [answer.token_ids[start:end] for start, end in zip(edges[::2], edges[1::2], strict=True)]
    shown = ", ".join(_both_ends(_text(part, tokenizer)) for part in parts[:3])
    more = f" and {len(parts) - 3} more turns" if len(parts) > 3 else ""
    return f"{int(answer.loss_mask.sum()):,} trained on: {shown}{more}"


def _text(token_ids: NDArray[np.int32], tokenizer: ChatTokenizer) -> str:
    return tokenizer.model_tokenizer.decode(token_ids.tolist(), skip_special_tokens=False)


def _end(text: str) -> str:
    return repr(text if len(text) <= SHOWN_CHARACTERS else f"...{text[-SHOWN_CHARACTERS:]}")


def _both_ends(text: str) -> str:
    half = SHOWN_CHARACTERS // 2
    return repr(text if len(text) <= SHOWN_CHARACTERS else f"{text[:half]} ... {text[-half:]}")
