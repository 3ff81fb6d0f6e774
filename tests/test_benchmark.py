"""The table of the speed benchmark: medians of alternating runs, and groups that are remeasured separately."""

import json

import pytest

from benchmark.speed import __main__ as speed
from benchmark.speed.measuring import Row, alternate, at_least, at_most

CALLS: list[float] = []


def slower_each_time() -> float:
    """Each process counts its own calls."""
    CALLS.append(len(CALLS))
    return CALLS[-1]


def test_the_first_run_is_a_warm_up_and_each_contestant_has_its_own_process():
    assert alternate({"one": slower_each_time, "other": slower_each_time}, 3) == {"one": 2, "other": 2}
    assert CALLS == []


@pytest.mark.parametrize(("kind", "ratio"), [(at_least, 1.9), (at_most, 2.1)])
def test_a_row_says_whether_its_target_is_met(kind, ratio):
    assert kind("speed", 2.0, 2.0, 1.0, 2.0, 3.0).met
    assert not kind("speed", 2.0, ratio, 1.0, 2.0, 3.0).met


def test_a_remeasured_group_replaces_only_its_own_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(speed, "TABLE", tmp_path / "benchmark.json")
    monkeypatch.setattr(speed, "PAGE", tmp_path / "benchmark.md")
    monkeypatch.setattr(speed, "_machine", lambda: "2 cores")
    speed._keep("growth", [Row("list files", 1234.56)])
    monkeypatch.setattr(speed, "_machine", lambda: "4 cores")
    speed._keep("feeding", [at_least("feeding", 2.0, 1.5, 3.0, 2.0, 4.0), Row("gone tomorrow", 1.0)])
    speed._keep("feeding", [at_least("feeding", 2.0, 2.5, 5.0, 2.0, 6.0)])
    table = json.loads((tmp_path / "benchmark.json").read_text())
    assert [(row["name"], row["ours"], row["met"]) for row in table] == [
        ("feeding", 5.0, True),
        ("list files", 1235.0, None),
    ]
    assert set(table[0]) == {"group", "machine", "name", "ours", "usual", "limit", "ratio", "target", "met"}
    page = (tmp_path / "benchmark.md").read_text()
    assert "Measured on 4 cores.\n\nRows measured on 2 cores: list files.\n\n" in page
    assert "| feeding | 5.0 | 2.0 | 6.0 | 2.5 | ≥ 2 | yes |\n| list files | 1 235 |  |  |  |  |  |\n" in page
