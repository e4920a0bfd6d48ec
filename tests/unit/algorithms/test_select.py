import numpy as np

from ray_rl.algorithms.select import informative_rows


def test_rows_with_an_advantage_somewhere_are_informative():
    advantages_RT = np.array([[0.0, 0.0], [0.0, -1e-8], [1.0, 1.0]], np.float32)
    assert informative_rows(advantages_RT).tolist() == [False, True, True]
