"""The score of `convae anomalies` tells a class that the encoder has never seen."""

import pytest

from benchmark.anomalies import SMALL, areas, digits_in
from convae.params import Params, load_params


@pytest.mark.slow
def test_a_digit_that_was_left_out_is_unusual(repository, tmp_path):
    content = load_params(repository / "params.yaml").model_dump(mode="json")
    for section, keys in SMALL.items():
        content[section] |= keys
    found = areas(Params.model_validate(content), digits_in(tmp_path / "digits"), 7, tmp_path / "work")
    assert found["5 nearest, directions"] > 0.9
    assert found["5 nearest, directions"] > found["mean of a class"]
