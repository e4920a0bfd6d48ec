"""Scores conversations with one reward model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from ray_rl.catalog.shapes import reads_chat
from ray_rl.data.chat import ChatTokenizer
from ray_rl.data.tokenizer import ModelTokenizer, load_tokenizer
from ray_rl.errors import DataError
from ray_rl.metrics.metric import Mean, Metric
from ray_rl.models.reward_model import has_linear_head, load_reward_model, sequence_scores
from ray_rl.rewards.model.reading import ChatReader, PlainReader, Reader
from ray_rl.types import Message

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

CONTEXT_KEYS = ("max_position_embeddings", "n_positions")
"""Keys of config.json for the longest sequence. Models without such a key have no limit."""


class ModelScorer:
    """One reward model with its own tokenizer.

    The model's chat template alone turns a conversation into tokens, without a generation prompt: the template writes
    the first token (BOS) if the model needs one. A model that was trained with `data.chat: false` reads plain text. A
    conversation that is too long loses tokens at its start, after that first token.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: ModelTokenizer,
        *,
        reader: Reader,
        path: str,
        micro_batch_tokens: int,
        max_tokens: int | None = None,
        device: str = "cpu",
    ) -> None:
        """Makes the scorer of a loaded model; `ModelScorer.load` also loads it.

        Args:
            model: the result of `load_reward_model`.
            tokenizer: the tokenizer of the model.
            reader: turns conversations into tokens.
            path: the name of the model in errors.
            micro_batch_tokens: the most tokens of a forward pass, padding included. A longer conversation has its own.
            max_tokens: the most tokens of a conversation, within the model's context; None is the model's context.
            device: torch's name of the device for the model.

        Raises:
            DataError: the tokenizer has tokens that the model does not know.
        """
        known = model.get_input_embeddings().get_parameter("weight").shape[0]
        largest = max(tokenizer.vocabulary.values(), default=0)
        if largest >= known:
            raise DataError(
                f"rewards.paths={path}: the tokenizer has a token {largest}, and the model {known} embeddings; "
                "use a model that was saved with its own tokenizer"
            )
        self._model = model.to(device)  # type: ignore[arg-type]  # transformers' wrapper hides the signature
        self._tokenizer = tokenizer
        self._reader = reader
        self._device = device
        self._budget = micro_batch_tokens
        limits = [max_tokens, _context_tokens(model.config)]
        if not has_linear_head(model):
            # Encoders may start to count positions after the padding token: their tokenizers know the true limit.
            limits.append(tokenizer.max_tokens)
        self._limit = min((limit for limit in limits if limit is not None), default=None)
        # Some models with their own forward pass find the end by this token. For others any token works.
        pad = None if has_linear_head(model) else model.config.pad_token_id
        self._pad = 0 if pad is None else pad
        self._truncated, self._count = 0, 0

    @classmethod
    def load(
        cls,
        path: str,
        *,
        micro_batch_tokens: int,
        max_tokens: int | None,
        dtype: str,
        attention: str,
        trust_remote_code: bool,
        device: str = "cpu",
    ) -> ModelScorer:
        """Loads a model with its tokenizer; the settings are those of the constructor.

        Raises:
            ConfigError: see `load_reward_model`.
            DataError: the model or its tokenizer cannot be loaded, or it needs a chat template and has none.
        """
        model = load_reward_model(path, dtype=dtype, attention=attention, trust_remote_code=trust_remote_code)
        tokenizer = load_tokenizer(path, trust_remote_code=trust_remote_code, key="rewards.paths")
        reader: Reader
        if reads_chat(model.config.to_dict()):
            reader = ChatReader(tokenizer, path=path)
        else:
            reader = PlainReader(ChatTokenizer(path, trust_remote_code=trust_remote_code), path=path)
        return cls(
            model,
            tokenizer,
            reader=reader,
            path=path,
            micro_batch_tokens=micro_batch_tokens,
            max_tokens=max_tokens,
            device=device,
        )

    def scores(self, conversations: Sequence[Sequence[Message]]) -> NDArray[np.float32]:
        """Returns the score of each conversation, which does not depend on the others (in float32 to 1e-5).

        Args:
            conversations: n conversations that include the answer to judge.

        Returns:
            float32 [n]; nan or infinite if the numbers of the model overflow.

        Raises:
            DataError: the model cannot read a conversation: the chat template refuses it, or gives no tokens for it.
        """
        sequences = [self._tokens(index, conversation) for index, conversation in enumerate(conversations)]
        self._count = len(sequences)
        self._truncated = sum(1 for tokens in sequences if self._limit is not None and len(tokens) > self._limit)
        sequences = [self._cut(tokens) for tokens in sequences]
        scores_n = np.zeros(len(sequences), np.float32)
        for rows in micro_batches([len(tokens) for tokens in sequences], self._budget):
            scores_n[rows] = self._forward([sequences[row] for row in rows])
        return scores_n

    def metrics(self) -> list[Metric]:
        """Returns the share of conversations that were cut in the last call of `scores`."""
        return [Mean("reward/model_truncated_fraction", self._truncated, self._count)]

    def _tokens(self, index: int, conversation: Sequence[Message]) -> list[int]:
        try:
            return self._reader.tokens(conversation)
        except DataError as error:
            raise DataError(f"conversation {index}: {error}") from error

    def _cut(self, tokens: list[int]) -> list[int]:
        """Returns the last tokens that fit. The first token stays if it is the one with which every sequence starts."""
        if self._limit is None or len(tokens) <= self._limit:
            return tokens
        starts = (self._tokenizer.id_of("bos_token"), self._tokenizer.id_of("cls_token"))
        kept = 1 if tokens[0] in starts and self._limit > 1 else 0
        return tokens[:kept] + tokens[len(tokens) - (self._limit - kept) :]

    @torch.inference_mode()
    def _forward(self, sequences: Sequence[list[int]]) -> NDArray[np.float32]:
        """Returns the scores of one micro-batch, which is padded on the right."""
        width = max(map(len, sequences))
        tokens_BL = torch.tensor([tokens + [self._pad] * (width - len(tokens)) for tokens in sequences])
        lengths_B = torch.tensor([len(tokens) for tokens in sequences])
        mask_BL = (torch.arange(width) < lengths_B[:, None]).long()
        scores_B = sequence_scores(self._model, tokens_BL.to(self._device), mask_BL.to(self._device))
        result: NDArray[np.float32] = scores_B.cpu().numpy()
        return result


def micro_batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Yields rows in micro-batches of at most `budget` tokens, padding included.

    The longest come first, so that too little memory fails early. A row over the budget is its own micro-batch.
    """
    rows = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    while rows:
        size = max(1, budget // lengths[rows[0]])
        yield rows[:size]
        rows = rows[size:]


def _context_tokens(model_config: PretrainedConfig) -> int | None:
    settings = model_config.get_text_config().to_dict()
    return next((settings[key] for key in CONTEXT_KEYS if isinstance(settings.get(key), int)), None)
