import pytest

from ray_rl.checkpoint.best import FILE, kept_best


@pytest.mark.parametrize(
    ("content", "step"),
    [
        ('{"step": 4, "is_kept": true}', 4),
        ('{"step": 4, "is_kept": false}', None),
        ('{"step": null, "is_kept": true}', None),
        ('{"step": 4}', None),
        ("[4]", None),
        ('{"step": 4', None),
        (None, None),
    ],
)
def test_the_best_step_is_read_only_from_a_file_that_says_that_it_is_kept(tmp_path, content, step):
    if content is not None:
        (tmp_path / FILE).write_text(content)
    assert kept_best(tmp_path) == step
