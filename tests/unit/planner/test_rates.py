import json

import pytest

from ray_rl.errors import ConfigError
from ray_rl.planner.gpus import GPUS
from ray_rl.planner.rates import BANDWIDTH_SHARE, TRAINING_SHARE, Rates, read_rates

H100 = GPUS["h100-80gb"].speed


def test_rates_are_shares_of_the_data_sheet():
    rates = Rates.of(H100, "bfloat16")
    assert rates.training == TRAINING_SHARE * 989.4e12
    assert rates.memory == BANDWIDTH_SHARE * 3350e9
    assert Rates.of(H100, "float32").training == pytest.approx(TRAINING_SHARE * 66.9e12)
    assert rates.link > rates.network


def test_measured_rates_replace_those_of_the_data_sheet(tmp_path):
    file = tmp_path / "rates.json"
    file.write_text(json.dumps({"training": 3e14, "device": "an H100", "memory": 2e12}))
    rates = read_rates(str(file), Rates.of(H100, "bfloat16"))
    assert (rates.training, rates.memory) == (3e14, 2e12)
    assert rates.scoring == Rates.of(H100, "bfloat16").scoring


def test_without_a_data_sheet_all_rates_must_be_measured(tmp_path):
    file = tmp_path / "rates.json"
    whole = {"training": 1e11, "scoring": 1e11, "decoding": 1e11, "memory": 1e10, "link": 1e9, "network": 1e9}
    file.write_text(json.dumps(whole))
    assert read_rates(str(file), None) == Rates(**whole)
    file.write_text(json.dumps({"training": 1e11}))
    with pytest.raises(ConfigError, match="has no scoring, decoding, memory, link, network; write it with ray-rl plan"):
        read_rates(str(file), None)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"training": "fast"}', "training is 'fast', not a rate above 0"),
        ('{"training": 0}', "training is 0, not a rate above 0"),
        ('{"training": true}', "training is True"),
        ("{", "cannot be read"),
        ("[1]", "has no training, scoring, decoding, memory, link, network"),
    ],
)
def test_a_file_without_rates_is_refused(tmp_path, text, reason):
    file = tmp_path / "rates.json"
    file.write_text(text)
    with pytest.raises(ConfigError, match=reason):
        read_rates(str(file), None)
