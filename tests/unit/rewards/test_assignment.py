import numpy as np
import pytest

from ray_rl.rewards.model.assignment import Assignment, assembled, assignment

SHAPES = [
    (models, workers) for models in range(1, 6) for workers in range(1, 16) if workers <= models or not workers % models
]


@pytest.mark.parametrize(
    ("models", "workers", "expected"),
    [
        (1, 1, [((0,), 0, 1)]),
        (3, 2, [((0, 2), 0, 1), ((1,), 0, 1)]),
        (5, 2, [((0, 2, 4), 0, 1), ((1, 3), 0, 1)]),
        (3, 3, [((0,), 0, 1), ((1,), 0, 1), ((2,), 0, 1)]),
        (2, 4, [((0,), 0, 2), ((1,), 0, 2), ((0,), 1, 2), ((1,), 1, 2)]),
        (1, 3, [((0,), 0, 3), ((0,), 1, 3), ((0,), 2, 3)]),
    ],
)
def test_models_are_dealt_out_and_then_rollouts_are_split(models, workers, expected):
    assert [assignment(models, workers, worker) for worker in range(workers)] == [
        Assignment(*each) for each in expected
    ]


@pytest.mark.parametrize(("models", "workers"), SHAPES)
@pytest.mark.parametrize("rows", [0, 1, 7, 24])
def test_every_model_scores_every_rollout_once(models, workers, rows):
    scored_MR = np.zeros((models, rows), int)
    for worker in range(workers):
        given = assignment(models, workers, worker)
        scored_MR[list(given.models), given.rows] += 1
    assert (scored_MR == 1).all()


@pytest.mark.parametrize(("models", "workers"), SHAPES)
@pytest.mark.parametrize("rows", [0, 1, 7])
def test_the_parts_make_the_whole_again(models, workers, rows):
    whole_MR = np.arange(models * rows, dtype=np.float32).reshape(models, rows)
    parts = []
    for worker in range(workers):
        given = assignment(models, workers, worker)
        parts.append(whole_MR[list(given.models), given.rows])
    result_MR = assembled(parts, models=models, rows=rows)
    assert result_MR.dtype == np.float32
    np.testing.assert_array_equal(result_MR, whole_MR)


def test_a_part_of_another_shape_names_its_worker():
    parts = [np.zeros((1, 2), np.float32), np.zeros((1, 2), np.float32)]
    with pytest.raises(ValueError, match=r"worker 1 returned scores of shape \(1, 2\).* share 1 of 2 make \(1, 1\)"):
        assembled(parts, models=1, rows=3)


def test_workers_that_cannot_hold_the_models_equally_often_are_refused():
    with pytest.raises(ValueError, match="4 reward workers cannot hold 3 models equally often"):
        assignment(3, 4, 0)


@pytest.mark.parametrize("worker", [-1, 2])
def test_a_worker_that_does_not_exist_is_refused(worker):
    with pytest.raises(ValueError, match=f"worker={worker}: there are 2 reward workers"):
        assignment(2, 2, worker)
