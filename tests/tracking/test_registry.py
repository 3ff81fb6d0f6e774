"""Which model is the champion."""

import pytest

from convae.tracking.registry import (
    ACCURACY,
    CHAMPION,
    CLASSIFIER,
    CONTENT,
    ENCODER,
    IMAGES,
    _move_champion,
    _register,
)
from convae.tracking.store import open_store


@pytest.fixture
def publish(tmp_path):
    """`publish(content, accuracy, images)` to a real store: the message about the champion, and its versions."""
    client, (experiment,) = open_store(f"sqlite:///{tmp_path / 'mlflow.db'}", "convae")
    run = client.create_run(experiment).info.run_id
    (tmp_path / "model").mkdir()
    (tmp_path / "model/file").write_text("weights")

    def publish(encoder, classifier, accuracy, images="same"):
        tags = {ACCURACY: str(accuracy), IMAGES: images}
        versions = {
            name: _register(client, name, tmp_path / "model", run, "card", tags | {CONTENT: content})
            for name, content in ((ENCODER, encoder), (CLASSIFIER, classifier))
        }
        said = _move_champion(client, versions, tags)
        champions = tuple(int(client.get_registered_model(name).aliases[CHAMPION]) for name in (ENCODER, CLASSIFIER))
        return said, champions

    return publish


def test_the_first_model_is_champion_until_a_better_one(publish):
    assert publish("a", "A", 0.5) == ("champion is version 1: models:/convae-classifier@champion", (1, 1))
    assert publish("b", "B", 0.75) == ("champion is version 2: models:/convae-classifier@champion", (2, 2))


def test_a_worse_or_equal_model_does_not_become_champion(publish):
    publish("a", "A", 0.5)
    said = "champion stays with version 1: validation accuracy 50.00 %, this version "
    assert publish("b", "B", 0.25) == (f"{said}25.00 %", (1, 1))
    assert publish("c", "C", 0.5) == (f"{said}50.00 %", (1, 1))


def test_accuracies_on_other_images_are_not_compared(publish):
    publish("a", "A", 0.5)
    said, champions = publish("b", "B", 0.9, images="others")
    assert said.startswith("champion stays with version 1: it was trained or measured on other images")
    assert champions == (1, 1)


def test_a_registered_model_is_not_registered_again(publish):
    publish("a", "A", 0.5)
    assert publish("a", "A", 0.5) == ("champion stays with version 1, this version", (1, 1))
    assert publish("a", "B", 0.75) == ("champion is version 2: models:/convae-classifier@champion", (1, 2))
