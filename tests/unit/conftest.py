import atexit
import gc

import pytest

# Imports make hundreds of thousands of objects that live as long as the process: each search for garbage among them
# takes a quarter of a second with torch and transformers.
gc.disable()
# Libraries complain at the end of the process about objects that are still there.
atexit.register(gc.unfreeze)


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """Searches from now on, but only among what tests make."""
    gc.freeze()
    gc.enable()
