"""Selects the rollouts that an update needs."""

import numpy as np
from numpy.typing import NDArray


def informative_rows(advantages_RT: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Returns which rollouts have an advantage other than 0: without one the surrogate has no gradient.

    The others may be left out of the forward pass if neither a KL penalty nor an entropy bonus needs them. They
    still belong to `reduce.reduction_count`, so leaving them out does not change the gradient.

    Args:
        advantages_RT: float32 [R, T].

    Returns:
        bool [R].
    """
    is_informative_R: NDArray[np.bool_] = (advantages_RT != 0).any(axis=1)
    return is_informative_R
