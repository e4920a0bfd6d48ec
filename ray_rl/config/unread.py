"""Keys that have no effect with some algorithms, and what to change. They are refused: nobody shall rely on them."""

UNREAD_OFFLINE = {
    "data.max_prompt_tokens": "remove it, and set data.max_tokens, the limit of prompt and answer together",
    "data.check_s": "remove it, because all examples are read before the start",
    "data.drop_last_answer": "remove it, because the last answer is what is learnt",
}
"""Keys that algorithms which learn from examples do not read, with what to change."""

UNREAD_ONLINE = {
    "run.epochs": "remove it, and set run.steps",
    "run.evaluate_every": "remove it",
    "run.patience": "remove it",
    "checkpoint.keep_best": "remove it",
    "data.max_tokens": "remove it; data.max_prompt_tokens and rollout.max_tokens are the limits",
    "data.too_long": "remove it; longer prompts than data.max_prompt_tokens are always left out",
    "data.held_out": "remove it",
    "data.deduplicate": "remove it",
    "reference.when": "remove it, because the reference always works during training",
}
"""Keys that algorithms which learn from rollouts do not read, with what to change."""
