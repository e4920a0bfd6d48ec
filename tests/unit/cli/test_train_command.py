import pytest

from ray_rl.app import before_start
from ray_rl.app.before_start import check_installed
from ray_rl.errors import UserError


def test_a_missing_package_is_named_before_anything_starts(monkeypatch):
    monkeypatch.setattr(before_start, "NEEDED", ("json", "no_such_package_1", "no_such_package_2"))
    with pytest.raises(UserError) as caught:
        check_installed()
    assert str(caught.value) == (
        "training needs no_such_package_1, no_such_package_2, which are not installed; "
        "pip install -r docker/requirements-cpu.txt (or -gpu.txt), then see `ray-rl doctor`"
    )
