"""A reward model as a judge of conversations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from ray_rl.data.template import ChatTemplate
from ray_rl.data.tokenizer import ModelTokenizer, load_tokenizer
from ray_rl.errors import ConfigError, DataError
from ray_rl.metrics.metric import Mean, Metric
from ray_rl.models.reward_model import load_reward_model, reads_last_token, sequence_scores
from ray_rl.types import Message

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

CONTEXT_KEYS = ("max_position_embeddings", "n_positions")
"""What config.json calls the longest sequence; others have no such limit."""


class ModelScorer:
    """One reward model with its own tokenizer and chat template.

    A conversation becomes tokens by the model's chat template, without a generation prompt, and by nothing else: the
    template writes the first token (BOS) if the model wants one. What is too long loses tokens at its start, but for
    that first token.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: ModelTokenizer,
        *,
        path: str,
        micro_batch_tokens: int,
        max_tokens: int | None = None,
        device: str = "cpu",
    ) -> None:
        """Takes a loaded model; `ModelScorer.load` loads it.

        Args:
            model: from `load_reward_model`.
            tokenizer: with a chat template.
            path: what errors call the model.
            micro_batch_tokens: of one forward pass, padding included; a longer conversation has a pass of its own.
            max_tokens: of a conversation, at most the model's context. None: the model's context.
            device: where the model goes, as torch names it.

        Raises:
            ConfigError: there is no chat template. A format made up here would give scores that mean nothing.
            DataError: the tokenizer has tokens that the model does not know.
        """
        template = tokenizer.templates.get("default")
        if template is None and tokenizer.templates:
            raise ConfigError(
                f"rewards.paths: the tokenizer of {path} has the chat templates "
                f"{', '.join(sorted(tokenizer.templates))}, and none of them is called default; "
                "put the one to use beside it as chat_template.jinja"
            )
        if template is None:
            raise ConfigError(
                f"rewards.paths: the tokenizer of {path} has no chat template; put the one that the model was trained "
                "with beside it as chat_template.jinja, or name another model"
            )
        known = model.get_input_embeddings().get_parameter("weight").shape[0]
        largest = max(tokenizer.vocabulary.values(), default=0)
        if largest >= known:
            raise DataError(
                f"rewards.paths: the tokenizer of {path} has a token {largest}, and its model knows {known}; "
                "name a model that was saved with its own tokenizer"
            )
        self._model = model.to(device)  # type: ignore[arg-type]  # transformers' wrapper hides the signature
        self._tokenizer = tokenizer
        self._template = ChatTemplate(
            template, special_tokens=tokenizer.special_tokens, owner=f"the reward model {path}"
        )
        self._path = path
        self._device = device
        self._budget = micro_batch_tokens
        limits = [max_tokens, _context_tokens(model.config)]
        if not reads_last_token(model):
            # Encoders may count positions from beyond the padding token: their tokenizers know the true limit.
            limits.append(tokenizer.max_tokens)
        self._limit = min((limit for limit in limits if limit is not None), default=None)
        # Some models with a forward pass of their own look for the end by this token. Elsewhere any token will do.
        pad = None if reads_last_token(model) else model.config.pad_token_id
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
        """Loads the scorer of a model; settings as in the constructor.

        Raises:
            ConfigError: as `load_reward_model`, or there is no chat template.
            DataError: as `load_reward_model`, or there is no tokenizer.
        """
        model = load_reward_model(path, dtype=dtype, attention=attention, trust_remote_code=trust_remote_code)
        tokenizer = load_tokenizer(path, trust_remote_code=trust_remote_code, key="rewards.paths")
        return cls(
            model,
            tokenizer,
            path=path,
            micro_batch_tokens=micro_batch_tokens,
            max_tokens=max_tokens,
            device=device,
        )

    def scores(self, conversations: Sequence[Sequence[Message]]) -> NDArray[np.float32]:
        """The score of each conversation, whatever else is scored with it (in float32 to 1e-5).

        Args:
            conversations: n of them, the answer to be judged included.

        Returns:
            float32 [n]; nan or infinite where the numbers of the model overflow.

        Raises:
            DataError: the chat template refuses a conversation, or makes nothing of it.
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
        """Of the last call of `scores`: the share of conversations that were cut."""
        return [Mean("reward/model_truncated_fraction", self._truncated, self._count)]

    def _tokens(self, index: int, conversation: Sequence[Message]) -> list[int]:
        try:
            text = self._template.render(conversation, generation_prompt=False)
        except DataError as error:
            raise DataError(f"conversation {index}: {error}") from error
        # The template writes the first token (BOS) if the model wants one: the tokenizer adds none of its own.
        tokens = self._tokenizer.encode(text, special=False)
        if not tokens:
            raise DataError(f"the chat template of the reward model {self._path} makes nothing of conversation {index}")
        return tokens

    def _cut(self, tokens: list[int]) -> list[int]:
        """The last tokens that fit; the first stays if it is the token that every sequence starts with."""
        if self._limit is None or len(tokens) <= self._limit:
            return tokens
        starts = (self._tokenizer.id_of("bos_token"), self._tokenizer.id_of("cls_token"))
        kept = 1 if tokens[0] in starts and self._limit > 1 else 0
        return tokens[:kept] + tokens[len(tokens) - (self._limit - kept) :]

    @torch.inference_mode()
    def _forward(self, sequences: Sequence[list[int]]) -> NDArray[np.float32]:
        """Scores of one micro-batch, padded on the right."""
        width = max(map(len, sequences))
        tokens_BL = torch.tensor([tokens + [self._pad] * (width - len(tokens)) for tokens in sequences])
        lengths_B = torch.tensor([len(tokens) for tokens in sequences])
        mask_BL = (torch.arange(width) < lengths_B[:, None]).long()
        scores_B = sequence_scores(self._model, tokens_BL.to(self._device), mask_BL.to(self._device))
        result: NDArray[np.float32] = scores_B.cpu().numpy()
        return result


def micro_batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Rows in micro-batches of at most `budget` tokens, padding included: longest first, so that memory fails early.

    A row that is alone over the budget is a micro-batch of its own.
    """
    rows = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    while rows:
        size = max(1, budget // lengths[rows[0]])
        yield rows[:size]
        rows = rows[size:]


def _context_tokens(model_config: PretrainedConfig) -> int | None:
    settings = model_config.get_text_config().to_dict()
    return next((settings[key] for key in CONTEXT_KEYS if isinstance(settings.get(key), int)), None)
