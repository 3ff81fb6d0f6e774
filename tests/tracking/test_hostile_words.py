"""Names that contain HTML or Markdown: MLflow shows them as text in a real browser."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers import chromium, mlflow_server, needs_chromium, wait_for
from mlflow import MlflowClient

from convae.datasets.reading import Reading
from convae.model_card import model_card
from convae.names import code
from convae.tracking.records import NOTE
from convae.tracking.wording import link, way_back

PWNED = "document.title='pwned'"
HOSTILE = [
    f"<script>{PWNED}<!--",
    f"<img src=x onerror={PWNED}>",
    f"`<img src=x onerror={PWNED}>`",
    f"one](javascript:{PWNED}) [two",
    f"[three](javascript:{PWNED})",
]


def test_a_name_is_text_in_markdown() -> None:
    run: Any = SimpleNamespace(info=SimpleNamespace(experiment_id="1", run_id="2"))
    assert link("a [b](c) <d> | e", run) == r"[a \[b\](c) \<d> \| e](#/experiments/1/runs/2)"
    assert link("plain: name_1=0.5, …", None) == "plain: name_1=0.5, …"
    assert code("a `b` | c") == "`a _b_ _ c`"


def card() -> str:
    description = {
        "kind": "ridge",
        "classes": HOSTILE,
        "test": {"accuracy": 0.5, "accuracy_low": 0.4, "accuracy_high": 0.6},
        "validation": {"accuracy": 0.5},
    }
    config = {
        "channels": 1,
        "image_size": [8, 8],
        "layers": [],
        "trained_on": {"dataset": "image_folder", "images": 9, "sha256": "0" * 64},
        "versions": {"torch": "2"},
    }
    encoder: Any = SimpleNamespace(
        config=config, image_type="uint8", reading=lambda: Reading(1, (8, 8)), features=lambda images: np.zeros((0, 3))
    )
    return model_card(HOSTILE[1], encoder, description, f"Restore the experiment with {code(HOSTILE[2])}.")


@needs_chromium
@pytest.mark.slow
def test_mlflow_executes_nothing_in_a_note_or_a_card(tmp_path: Path) -> None:
    with mlflow_server(tmp_path) as (address, _):
        client = MlflowClient(address, address)
        experiment = client.create_experiment("hostile")
        run = client.create_run(experiment, run_name=HOSTILE[1])
        words = [f"{link(name, run)}\n\n{code(name)}\n\n{way_back(name)}" for name in HOSTILE]
        client.set_tag(run.info.run_id, NOTE, "\n\n".join(["seen", *words]))
        client.create_registered_model("hostile")
        client.create_model_version(
            "hostile", f"{run.info.artifact_uri}/x", run.info.run_id, description=f"seen\n\n{card()}"
        )
        with chromium() as browser:
            page = browser.new_page()
            page.set_default_timeout(60_000)
            for place in (f"experiments/{experiment}/runs/{run.info.run_id}", "models/hostile/versions/1"):
                page.goto(f"{address}/#/{place}")
                page.get_by_text("seen", exact=True).first.wait_for()
                wait_for(lambda: page.title())
                page.wait_for_timeout(1000)
                assert "pwned" not in page.title()
                assert page.locator("img[onerror], a[href^='javascript:']").count() == 0
