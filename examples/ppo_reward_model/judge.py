"""Makes a reward model: SmolLM2 with a head that prefers answers of one number to sentences.

The head is fitted by least squares to conversations of known score, on the hidden state of the last token. Yours would
be trained on preferences. A run only needs a sequence classifier with one label in the format of Hugging Face.
"""

import random
import sys
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging

from ray_rl.models.packaged import resolve_model

FOLDER = Path(__file__).with_name("judge")
CONVERSATIONS = 64
RIDGE = 10.0
SENTENCES = (
    "The sum is {sum}.",
    "{a} + {b} = {sum}",
    "To add {a} and {b}, start with the tens.",
    "The answer is {sum}, because {a} and {b} make {sum}.",
    "I think that it is {sum}, but check it.",
    "Sure! What is your next question?",
)


def conversations() -> tuple[list[list[dict[str, str]]], list[float]]:
    """Returns questions with their answers, and the scores: 1 for a number alone, -1 for everything else."""
    draw = random.Random(0)
    turns, scores = [], []
    for index in range(CONVERSATIONS):
        a, b = draw.randint(0, 50), draw.randint(0, 50)
        is_number = index % 2 == 0
        answer = str(draw.randint(0, 100)) if is_number else draw.choice(SENTENCES).format(a=a, b=b, sum=a + b)
        question = f"What is {a}+{b}? Answer with a number."
        turns.append([{"role": "user", "content": question}, {"role": "assistant", "content": answer}])
        scores.append(1.0 if is_number else -1.0)
    return turns, scores


@torch.inference_mode()
def main(base: str) -> None:
    """Fits the head of a language model and saves both."""
    logging.set_verbosity_error()  # of a warning that the head is random, which it is only until it is fitted
    logging.disable_progress_bar()
    path = resolve_model(base)
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model = AutoModelForSequenceClassification.from_pretrained(path, num_labels=1, dtype=torch.bfloat16).eval()
    turns, scores = conversations()
    texts = [str(tokenizer.apply_chat_template(one, tokenize=False)) for one in turns]
    batch = tokenizer(texts, add_special_tokens=False, padding=True, padding_side="right", return_tensors="pt")
    last = batch["attention_mask"].sum(1) - 1
    states = model.model(**batch).last_hidden_state[torch.arange(len(texts)), last].float()
    targets = torch.tensor(scores)
    gram = states.T @ states + RIDGE * torch.eye(states.shape[1])
    head = torch.linalg.solve(gram, states.T @ targets)
    model.score.weight.copy_(head[None])
    model.save_pretrained(FOLDER)
    tokenizer.save_pretrained(FOLDER)
    right = ((states @ head).sign() == targets).float().mean()
    print(f"{FOLDER}: the sign of the score is right for {right:.0%} of {len(scores)} conversations")


if __name__ == "__main__":
    main(*sys.argv[1:2] or ["smollm2-135m-instruct"])
