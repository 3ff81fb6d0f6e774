import pytest

from convae.evaluation.concerns import concerns


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, []),
        ({"filters": [{"filters": 8, "dead": 4, "duplicates": 4}]}, []),
        ({"filters": [{"filters": 8, "dead": 5, "duplicates": 0}]}, ["Layer 1: 5 of 8 filters are dead; a smaller"]),
        ({"filters": [{"filters": 8, "dead": 0, "duplicates": 5}]}, ["Layer 1: 5 of 8 filters are duplicates; fewer"]),
        ({"effective_rank": 1.0}, ["The features hardly vary"]),
        ({"copying": None}, []),
        (
            {"copying": {"reconstruction_mse": 0.3, "twin_reconstruction_mse": 0.32}},
            ["a random encoder with a trained"],
        ),
        ({"copying": {"reconstruction_mse": 0.6, "twin_reconstruction_mse": 0.5}}, ["no better than the mean image"]),
    ],
)
def test_what_is_doubtful_is_said(changes, words):
    health = {
        "filters": [{"filters": 8, "dead": 0, "duplicates": 0}],
        "effective_rank": 100.0,
        "copying": {"reconstruction_mse": 0.2, "twin_reconstruction_mse": 0.35},
    } | changes
    if health["copying"]:
        health["copying"]["baseline_mse"] = 0.55
    found = concerns({"health": health})
    assert len(found) == len(words)
    assert all(word in text for word, text in zip(words, found, strict=True))
