from ray_rl.planner.arithmetic import Share, step_arithmetic


def test_a_step_divides_over_engines_optimizer_steps_workers_and_micro_batches(make):
    step = step_arithmetic(
        make(
            algorithm={"kind": "grpo", "prompts_per_step": 10, "group_size": 4, "minibatches": 2, "update_epochs": 3},
            rollout={"engines": 3, "max_tokens": 1536},
            train={"workers": 3, "micro_batch_tokens": 5000},
        )
    )
    assert (step.sequences, step.per_engine, step.optimizer_steps, step.per_update) == (40, 16, 6, 20)
    assert step.longest == 2048
    assert step.shares == {"actor": Share(sequences=7, micro_batches=4, rows=2)}


def test_the_critic_has_a_share_of_its_own(make):
    step = step_arithmetic(make(algorithm={"kind": "ppo"}, critic={"workers": 2, "micro_batch_tokens": 16}))
    assert step.shares["critic"] == Share(sequences=4, micro_batches=4, rows=1)
