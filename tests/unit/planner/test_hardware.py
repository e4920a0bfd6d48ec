import pytest

from ray_rl.planner import hardware
from ray_rl.planner.hardware import resolve_dtype


@pytest.fixture
def cpu(tmp_path, monkeypatch):
    def of(flags):
        file = tmp_path / "cpuinfo"
        file.write_text(f"processor\t: 0\nflags\t\t: fpu sse {flags}\n")
        monkeypatch.setattr(hardware, "CPUINFO", file)

    return of


@pytest.mark.parametrize(
    ("flags", "dtype"),
    [("avx2", "float32"), ("avx512f avx512_bf16", "bfloat16"), ("amx_bf16", "bfloat16"), ("avx512_bf16x", "float32")],
)
def test_auto_is_bfloat16_on_a_cpu_that_multiplies_it_in_hardware(cpu, flags, dtype):
    cpu(flags)
    assert resolve_dtype("auto", "cpu") == dtype


def test_auto_is_bfloat16_on_gpu(cpu):
    cpu("avx2")
    assert resolve_dtype("auto", "gpu") == "bfloat16"


def test_auto_is_float32_where_the_cpu_does_not_say_what_it_can(tmp_path, monkeypatch):
    monkeypatch.setattr(hardware, "CPUINFO", tmp_path / "nothing")
    assert resolve_dtype("auto", "cpu") == "float32"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("accelerator", ["cpu", "gpu"])
def test_a_dtype_that_is_named_is_taken(cpu, dtype, accelerator):
    cpu("avx2")
    assert resolve_dtype(dtype, accelerator) == dtype
