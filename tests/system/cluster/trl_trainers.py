"""One optimizer step of TRL's own trainers on given tokens: the loss, and the gradient that the optimizer gets."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from ray_rl.training.member import Member
from ray_rl.types import Example


def trl_step(
    _: Member, kind: str, model: str, reference: str, examples: list[Example], settings: dict[str, Any], output: Path
) -> tuple[float, dict[str, NDArray[Any]]]:
    """Trains for one step in float64, and returns the loss and the gradient of each parameter by its name.

    Args:
        kind: the first word in the names of the trainer and of its configuration.
        model: the folder of the model, with a tokenizer, of which nothing matters but the token for padding.
        reference: the folder of the reference, for trainers that have one.
        examples: those of the step, in their order.
        settings: of the trainer, `per_device_train_batch_size` among them.
        output: a folder that the trainer may write to.
    """
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback

    torch.set_num_threads(1)  # matrices so small that they only wait for a second thread
    losses: list[float] = []
    gradients: dict[str, NDArray[Any]] = {}
    trainer_of, config_of = _classes(kind)

    class Reader(TrainerCallback):
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            gradients.update({name: p.grad.numpy().copy() for name, p in given["model"].named_parameters()})

    class Given(trainer_of):  # type: ignore[misc, valid-type]
        """Trains on columns that have tokens already, and keeps what each micro-batch adds to the loss."""

        def _prepare_dataset(self, dataset: Dataset, *_: Any, **__: Any) -> Dataset:
            return dataset

        def tokenize_row(self, feature: dict[str, Any], *_: Any, **__: Any) -> dict[str, Any]:
            return feature

        def training_step(self, *args: Any, **keywords: Any) -> torch.Tensor:
            losses.append(float(loss := super().training_step(*args, **keywords)))
            return loss

    config = config_of(
        output_dir=str(output),
        max_steps=1,
        gradient_accumulation_steps=len(examples) // settings["per_device_train_batch_size"],
        train_sampling_strategy="sequential",
        optim="sgd",
        max_grad_norm=0.0,
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        **settings,
    )
    auto_class = AutoModelForSequenceClassification if kind == "Reward" else AutoModelForCausalLM
    frozen = {}
    if kind in ("DPO", "KTO"):
        frozen["ref_model"] = AutoModelForCausalLM.from_pretrained(reference, dtype=torch.float64)
    rows = [_row(kind, example, before) for example, before in zip(examples, examples[-1:] + examples, strict=False)]
    Given(
        model=auto_class.from_pretrained(model, dtype=torch.float64),
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(model),
        callbacks=[Reader()],
        **frozen,
    ).train()
    return sum(losses), gradients


def _classes(kind: str) -> tuple[Any, Any]:
    import trl
    from trl.experimental import cpo, orpo

    place: Any = {"CPO": cpo, "ORPO": orpo}.get(kind, trl)
    return getattr(place, f"{kind}Trainer"), getattr(place, f"{kind}Config")


def _row(kind: str, example: Example, before: Example) -> dict[str, Any]:
    """The columns that the trainer makes of texts; KTO gives each prompt the answer of the example before it too."""
    prompt, answers = list(example.prompt_ids), [answer.token_ids.tolist() for answer in example.answers]
    match kind:
        case "SFT":
            return {"input_ids": prompt + answers[0], "labels": [-100] * len(prompt) + answers[0]}
        case "DPO":
            return {"prompt_ids": prompt, "chosen_ids": answers[0], "rejected_ids": answers[1]}
        case "KTO":
            other = before.answers[0].token_ids.tolist()
            tokens = {"prompt_ids": prompt, "completion_ids": answers[0], "KL_completion_ids": other}
            return tokens | {"label": example.label}
        case "Reward":
            margin = {} if example.margin is None else {"margin": example.margin}
            return {"chosen_ids": prompt + answers[0], "rejected_ids": prompt + answers[1]} | margin
        case _:
            row: dict[str, Any] = {"prompt": "", "chosen": "", "rejected": ""}
            for side, tokens in zip(("chosen", "rejected"), answers, strict=True):
                row[f"{side}_input_ids"] = prompt + tokens
                row[f"{side}_attention_mask"] = [1] * len(prompt + tokens)
                row[f"{side}_labels"] = [-100] * len(prompt) + tokens
            return row
