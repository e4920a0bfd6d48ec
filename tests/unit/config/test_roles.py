from ray_rl.config.roles import models_of, roles_of

POLICY = ("model.path", "smollm2-135m-instruct")


def test_every_role_says_who_works_and_with_which_models(load):
    config = load(
        "algorithm={kind: ppo}",
        "critic={workers: 2, path: ./a}",
        "rewards=[{kind: model, paths: [./b, o/c]}]",
        "rollout.engines=3",
    )
    roles = roles_of(config)
    assert [(role.name, role.workers_key, role.workers) for role in roles] == [
        ("actor", "train.workers", 1),
        ("critic", "critic.workers", 2),
        ("reference", "reference.workers", 1),
        ("reward", "rewards.0.workers", 1),
        ("rollout", "rollout.engines", 3),
    ]
    judges = (("rewards.0.paths.0", "./b"), ("rewards.0.paths.1", "o/c"))
    assert [role.models for role in roles] == [(POLICY,), (("critic.path", "./a"),), (POLICY,), judges, (POLICY,)]
    assert models_of(config) == (POLICY, ("critic.path", "./a"), *judges)
    assert [role.name for role in roles if role.trained is not None] == ["actor", "critic"]


def test_a_run_has_no_role_that_nothing_needs(load):
    assert [role.name for role in roles_of(load("reference={workers: 4}"))] == ["actor", "rollout"]
