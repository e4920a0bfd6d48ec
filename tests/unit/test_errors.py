import inspect
import pickle

import pytest

from ray_rl import errors

EXCEPTIONS = [cls for _, cls in inspect.getmembers(errors, inspect.isclass)]


@pytest.mark.parametrize("cls", EXCEPTIONS)
def test_an_error_crosses_a_process_boundary_with_its_message(cls):
    back = pickle.loads(pickle.dumps(cls("train.workers=3: must divide 8; use 2 or 4")))
    assert type(back) is cls
    assert str(back) == "train.workers=3: must divide 8; use 2 or 4"


@pytest.mark.parametrize("cls", EXCEPTIONS)
def test_every_error_hangs_on_the_tree_that_the_module_draws(cls):
    assert issubclass(cls, errors.RayRLError)
    assert cls.__name__ in errors.__doc__


def test_the_users_mistakes_are_told_apart_from_the_rest():
    assert {cls for cls in EXCEPTIONS if issubclass(cls, errors.UserError)} == {
        errors.UserError,
        errors.ConfigError,
        errors.DataError,
    }
