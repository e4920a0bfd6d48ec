import json
from dataclasses import asdict, replace

import pytest

from ray_rl.errors import ConfigError
from ray_rl.planner.assess import assess
from ray_rl.planner.calibration import (
    CPU,
    OF_COPIES,
    OF_PRODUCTS,
    Phases,
    as_json,
    lengths_of,
    rates_of_machine,
    rates_of_run,
    read_phases,
)
from ray_rl.planner.gpus import GPUS, ClusterShape
from ray_rl.planner.lengths import parse_lengths
from ray_rl.planner.rates import Rates, read_rates
from ray_rl.planner.throughput import Assumptions, estimate

MEASURED = {
    "products": 1e11,
    "narrow_products": 5e10,
    "copies": 2e10,
    "digests": 7e9,
    "layer_s": 1e-4,
    "loopback": 1e9,
}


def test_rates_of_a_machine_are_shares_of_what_was_measured(tmp_path):
    rates = rates_of_machine(MEASURED, "cpu")
    assert rates["training"] == OF_PRODUCTS["cpu"][0] * 1e11
    assert rates["memory"] == OF_COPIES * 2e10
    assert rates["front_end_s"] == 120e-6
    file = tmp_path / "rates.json"
    file.write_text(as_json(rates, measured_on="cpu"))
    assert asdict(read_rates(str(file), None)) == pytest.approx(asdict(Rates(**rates)), rel=1e-3)


def test_what_a_gpu_machine_cannot_measure_stays_that_of_the_data_sheet(tmp_path):
    on_gpu = {name: rate for name, rate in MEASURED.items() if name != "loopback"} | {"to_host": 5e10}
    file = tmp_path / "rates.json"
    file.write_text(as_json(rates_of_machine(on_gpu, "cuda")))
    sheet = Rates.of(GPUS["h100-80gb"].speed, "bfloat16")
    found = read_rates(str(file), sheet)
    assert (found.network, found.link) == (sheet.network, sheet.link)
    assert found.host == pytest.approx(0.7 * 5e10)
    assert found.training == pytest.approx(0.57 * 1e11)


@pytest.fixture
def run(make):
    """A run on CPU and its assessment."""

    def of(**sections):
        config = make(
            model={"path": "smollm2-135m-instruct", "dtype": "float32"},
            data={"kind": "addition", "max_prompt_tokens": 64},
            cluster={"accelerator": "cpu"},
            **{"rollout": {"max_tokens": 32}} | sections,
        )
        return config, assess(config, ClusterShape.of(config))

    return of


PPO = {"algorithm": {"kind": "ppo", "prompts_per_step": 16, "minibatches": 2, "update_epochs": 1}}


@pytest.mark.parametrize("algorithm", [{}, PPO])
def test_a_plan_with_the_rates_of_a_run_has_its_phases(run, algorithm):
    config, assessment = run(**algorithm)
    lengths = parse_lengths("mean=20", maximum=32)
    truth = replace(CPU, training=7e10, scoring=4e10, decoding=3e10, memory=8e9, digest=3e9, network=5e8)
    had = estimate(config, assessment, Assumptions(lengths, truth))
    phases = Phases(had.rollout_s, had.score_s, had.update_s, had.sync_s, 20.0, 5)
    rates = Rates(**rates_of_run(config, assessment, phases, lengths=lengths, start=CPU))
    planned = estimate(config, assessment, Assumptions(lengths, rates))
    for phase in ("rollout_s", "score_s", "update_s", "sync_s", "step_s"):
        assert getattr(planned, phase) == pytest.approx(getattr(had, phase), rel=1e-3)
    assert rates.training == pytest.approx(truth.training, rel=5e-2)


def test_a_run_that_samples_ahead_has_no_phases_of_its_own(run):
    config, assessment = run(rollout={"max_tokens": 32, "max_staleness": 1})
    phases = Phases(1, 1, 1, 1, 20, 5)
    with pytest.raises(ConfigError, match=r"rollout\.max_staleness=1: engines sampled while models were trained"):
        rates_of_run(config, assessment, phases, lengths=parse_lengths(None, maximum=32), start=CPU)


def test_the_first_step_of_a_run_is_left_out(tmp_path):
    steps = [
        {
            "time/rollout_s": seconds,
            "time/train_s": 2 * seconds,
            "time/sync_s": 1.0,
            "rollout/length_mean": 10 * seconds,
        }
        for seconds in (99.0, 3.0, 5.0)
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, steps)))
    assert read_phases(tmp_path) == Phases(4.0, 0.0, 8.0, 1.0, 40.0, 2)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "has no steps with rollouts"),
        ("{", "has no steps with rollouts"),
        ('{}\n{"loss": 1}', "has no steps with rollouts"),
        ('{"rollout/length_mean": 3}', "has fewer than two steps"),
    ],
)
def test_a_folder_without_steps_is_refused(tmp_path, text, reason):
    if text is not None:
        (tmp_path / "metrics.jsonl").write_text(text)
    with pytest.raises(ConfigError, match=reason):
        read_phases(tmp_path)


def test_the_lengths_of_a_run_are_those_that_were_measured(run):
    config, _ = run()
    given = parse_lengths("prompt=30", maximum=32)
    found = lengths_of(config, Phases(1, 1, 1, 1, 20, 5), given)
    assert found.moments()[0] == pytest.approx(20, rel=1e-2)
    assert found.prompt == 30
    assert lengths_of(config, Phases(1, 1, 1, 1, 32, 5), given) is given
    other = parse_lengths("mean=5", maximum=32)
    assert lengths_of(config, Phases(1, 1, 1, 1, 20, 5), other) is other


def test_measured_products_predict_a_measured_step_on_two_cores(run):
    """GRPO on two AVX2 cores in float32, 8 x 8 completions of 17.7 tokens: 7.7 s of rollouts and 13.7 s of training,
    where large products reached 100 GFLOP/s, and those with 64 rows 84 (95 in layers, 52 in the head)."""
    machine = {"products": 100e9, "narrow_products": 84e9, "copies": 12e9, "digests": 8e9, "layer_s": 2e-4}
    rates = Rates(**rates_of_machine(machine | {"loopback": 1e9}, "cpu"))
    config, assessment = run(
        algorithm={"kind": "grpo", "prompts_per_step": 8, "group_size": 8, "kl": {"coefficient": 0.0}},
        rollout={"max_tokens": 24, "max_sequences": 64},
    )
    lengths = parse_lengths("mean=17.7,prompt=43", maximum=24)
    planned = estimate(config, assessment, Assumptions(lengths, rates))
    assert planned.rollout_s == pytest.approx(7.7, rel=0.25)
    assert planned.update_s == pytest.approx(13.7, rel=0.25)
    assert planned.step_s == pytest.approx(22.3, rel=0.25)
