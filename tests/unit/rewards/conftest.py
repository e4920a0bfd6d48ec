from tests.unit.models.conftest import one_thread

__all__ = ["one_thread"]
