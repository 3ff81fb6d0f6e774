"""MLflow and the real pipeline: everything that DVC ran or restored is recorded once."""

import json
import os
import shutil
import signal
import subprocess

import pandas as pd
import psutil
import pytest
from clones import Clone
from helpers import REPOSITORY, ROWS, STAGES, chromium, content, free_port, needs_chromium, recorded, wait_for
from mlflow import MlflowClient

ORDER = ["download", "prepare", "train", "features", "evaluate", "report"]
SCREENSHOTS = REPOSITORY / "build/screenshots"
CPU_LOAD = "system/cpu_utilization_percentage"
EXPERIMENTS = {
    "ridge": ["classifier.kind=ridge"],
    "coarse": ["features.grid=2"],
    "longer": ["train.epochs=4"],
}


def client_of(repository, database="mlflow.db"):
    return MlflowClient(f"sqlite:///{repository.folder / database}")


def sync(repository, **environment):
    """What `convae sync` prints."""
    return repository.run("convae", "sync", PYTHONPATH="src", **environment).stdout.strip()


NOTHING = "Added 0 stage runs and 0 experiments; existing ones are unchanged."


def run_queue(repository, experiments):
    """Queue experiments and have two workers run them."""
    for name, changes in experiments.items():
        options = [option for change in changes for option in ("--set-param", change)]
        repository.run("dvc", "exp", "run", "--queue", "--name", name, *options)
    repository.run("dvc", "queue", "start", "--jobs", "2")

    def status():
        lines = repository.run("dvc", "queue", "status").stdout.splitlines()
        return [line.split()[-1] for line in lines if any(name in line.split() for name in experiments)]

    wait_for(lambda: set(status()) <= {"Success", "Failed"})
    assert status() == ["Success"] * len(experiments)


@pytest.fixture(scope="module")
def varied(finished, tmp_path_factory):
    """The finished pipeline after an experiment."""
    repository = finished.copy(tmp_path_factory.mktemp("varied") / "convae")
    repository.run("dvc", "exp", "run", "--name", "ridge", "--set-param", *EXPERIMENTS["ridge"])
    assert sync(repository) == NOTHING  # but the first row gets its commit's name: it was recorded before the commit
    return repository


@pytest.fixture(scope="module")
def compared(varied, tmp_path_factory):
    """The same after two more, run by two workers."""
    repository = varied.copy(tmp_path_factory.mktemp("compared") / "convae")
    repository.run("git", "checkout", "--quiet", "--force", "HEAD")
    run_queue(repository, {name: changes for name, changes in EXPERIMENTS.items() if name != "ridge"})
    return repository


def test_each_stage_is_a_run_and_the_experiment_a_row(finished):
    client = client_of(finished)
    assert sync(finished) == NOTHING
    runs = {run.data.tags["dvc.stage"]: run for run in recorded(client)}
    assert list(runs) == ORDER
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert runs["train"].data.params["train.epochs"] == "2"
    assert "classifier.kind" not in runs["train"].data.params
    assert runs["train"].data.tags["device"] == "cpu"
    figures = [item.path for item in client.list_artifacts(runs["report"].info.run_id, "figures")]
    assert any("filters" in figure for figure in figures)

    (row,) = recorded(client, ROWS)
    assert row.info.run_name.endswith(" First results")
    assert row.data.params["classifier.kind"] == "logistic_regression"
    metrics = json.loads(finished.read("reports/metrics.json"))
    curves = pd.read_csv(finished.folder / "reports/training.csv")
    assert len(curves) == 48  # 12 in each of two epochs of two phases
    for run in (runs["train"], row):
        for name in ("train_loss", "sample_loss", "validation_loss", "epoch"):
            history = client.get_metric_history(run.info.run_id, name)
            measured = curves[curves[name].notna()]
            assert [(entry.step, entry.value) for entry in history] == list(
                zip(measured["point"], measured[name], strict=True)
            )
    for run in (runs["evaluate"], row):
        assert run.data.metrics["test.accuracy"] == metrics["test"]["accuracy"]
        assert run.data.metrics["features.dimension"] == 16 * 2 * 4 * 4

    models = {model.name: model for model in client.search_logged_models([runs["train"].info.experiment_id])}
    assert set(models) == {"autoencoder", "encoder", "classifier", "reference"}
    for model in (models["encoder"], models["classifier"]):
        about = {(metric.key, metric.dataset_name): metric.value for metric in model.metrics}
        assert about["test.accuracy", "digits prepared/test"] == metrics["test"]["accuracy"]
        assert about["validation.accuracy", "digits prepared/validation"] == metrics["validation"]["accuracy"]
    assert not [
        path for path in (finished.folder / "mlartifacts").rglob("*") if path.suffix in (".safetensors", ".npy")
    ]


def test_a_second_repro_adds_nothing(finished):
    before = len(recorded(client_of(finished)))
    assert "Running stage" not in finished.run("dvc", "repro").stdout
    assert sync(finished) == NOTHING
    assert len(recorded(client_of(finished))) == before


def assert_rows(repository, experiments, runs):
    """Check that each experiment is one row with the metrics that DVC shows, without duplicates."""
    client = client_of(repository)
    assert sync(repository) == NOTHING
    rows = {run.info.run_name.partition(":")[0]: run for run in recorded(client, ROWS)}
    assert {name for name in rows if not name.endswith("First results")} == set(experiments)
    table = json.loads(repository.run("dvc", "exp", "show", "--json").stdout)
    shown = {
        revision["name"]: revision["data"]["metrics"]["reports/metrics.json"]["data"]
        for baseline in table
        for experiment in baseline["experiments"] or []
        for revision in experiment["revs"]
    }
    assert set(shown) == set(experiments)
    for name in experiments:
        (change,) = EXPERIMENTS[name]
        key, _, value = change.partition("=")
        assert rows[name].info.run_name == f"{name}: {change}"
        assert rows[name].data.params[key] == value
        assert rows[name].data.metrics["test.accuracy"] == shown[name]["test"]["accuracy"]
        assert f"`dvc exp apply {name}`" in rows[name].data.tags["mlflow.note.content"]
    found = recorded(client)
    assert {run.info.status for run in found} == {"FINISHED"}
    assert {run.data.tags["convae.origin"] for run in found} == {"executed"}
    assert len(found) == runs
    assert not list((repository.folder / ".dvc/tmp/exps").rglob("mlflow.db"))


def test_an_experiment_is_a_row_alongside_the_first_results(varied):
    assert_rows(varied, ["ridge"], 6 + 2)


@pytest.mark.slow
def test_experiments_of_two_workers_are_rows_too(compared):
    assert_rows(compared, list(EXPERIMENTS), 6 + 2 + 3 + 4)


def test_a_deleted_database_is_rebuilt_row_for_row(varied, tmp_path):
    other = varied.copy(tmp_path / "other")
    for database in other.folder.glob("mlflow.db*"):
        database.unlink()
    shutil.rmtree(other.folder / "mlartifacts")
    assert sync(other) == "Added 8 stage runs and 2 experiments; existing ones are unchanged."
    before, after = (
        {experiment: content(client_of(repository), experiment) for experiment in (STAGES, ROWS)}
        for repository in (varied, other)
    )
    assert after == before
    assert sync(other) == NOTHING


@pytest.mark.slow
def test_a_fresh_clone_with_a_shared_cache_has_every_row_without_computing(varied, tmp_path):
    other = Clone(tmp_path / "other")
    subprocess.run(["git", "clone", "--quiet", varied.folder, other.folder], check=True)
    other.run("dvc", "config", "--local", "cache.dir", str(varied.folder / ".dvc/cache"))
    other.run("git", "fetch", "--quiet", "origin", "refs/exps/*:refs/exps/*")  # `dvc exp pull` without a remote cache
    assert "Running stage" not in other.run("dvc", "repro").stdout.replace("Running stage 'validate'", "")
    assert sync(other) == "Added 8 stage runs and 2 experiments; existing ones are unchanged."
    rows, expected = (content(client_of(repository), ROWS) for repository in (other, varied))
    assert rows == expected
    assert {run.data.tags["convae.origin"] for run in recorded(client_of(other))} == {"restored"}
    lines = other.run("convae", "lineage", "models/encoder", PYTHONPATH="src").stdout.splitlines()
    assert [line for line in lines if line in ORDER] == ["features", "train", "prepare", "download"]
    assert sum(line.startswith("  run ") and "none" not in line for line in lines) == 4


@pytest.mark.slow
def test_interrupted_training_is_a_killed_run_that_resumes(finished, tmp_path):
    repository = finished.copy(tmp_path / "convae")
    client = client_of(repository)
    repository.set("train.epochs=1000000")  # it ends only by being stopped

    def trainings():
        return [run for run in recorded(client) if run.data.tags["dvc.stage"] == "train"][1:]

    def epochs():
        return sum(len(client.get_metric_history(run.info.run_id, "validation_loss")) for run in trainings())

    repro = repository.start("dvc", "repro")
    # An epoch is recorded a moment before its checkpoint is saved; once there are two, the first is sure to be saved.
    wait_for(lambda: epochs() >= 2 and CPU_LOAD in trainings()[0].data.metrics)
    (train,) = trainings()
    assert train.info.status == "RUNNING"
    os.kill(int(train.data.tags["process.pid"]), signal.SIGKILL)
    repro.communicate()
    assert repro.returncode != 0
    wait_for(lambda: trainings()[0].info.status == "KILLED")

    before = epochs()
    with (tmp_path / "log").open("w") as log:
        repro = repository.start("dvc", "repro", log=log)
        # Before it resumes, the run gets the epochs that the killed recorder had not yet written.
        wait_for(lambda: epochs() > before and "resuming epoch" in (tmp_path / "log").read_text())
        os.killpg(repro.pid, signal.SIGINT)  # as a terminal does: to the whole group
        assert repro.wait() != 0
    assert "resuming epoch" in (tmp_path / "log").read_text()
    wait_for(lambda: [run.info.status for run in trainings()] == ["KILLED"])

    repository.set("train.epochs=999999")  # another training, interrupted in its first attempt
    repro = repository.start("dvc", "repro")
    wait_for(lambda: "validation_loss" in trainings()[-1].data.metrics and len(trainings()) == 2)
    os.killpg(repro.pid, signal.SIGINT)
    repro.communicate()
    assert repro.returncode != 0
    wait_for(lambda: [run.info.status for run in trainings()] == ["KILLED", "KILLED"])

    repository.set("train.epochs=3")
    repository.run("dvc", "repro", "train")
    assert [run.info.status for run in trainings()] == ["KILLED", "KILLED", "FINISHED"]
    assert len(client.get_metric_history(trainings()[2].info.run_id, "validation_loss")) == 2 * 3  # layers, epochs
    assert len(client.get_metric_history(trainings()[2].info.run_id, "train_loss")) == 48


@needs_chromium
@pytest.mark.slow
def test_the_interface_opens_on_a_comparison(compared):
    from playwright.sync_api import expect

    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    ui = compared.start("convae", "ui", "--port", str(free_port()), PYTHONPATH="src")
    try:
        assert ui.stdout.readline().strip() == NOTHING
        line = ui.stdout.readline()
        assert line.startswith("Compare experiments at http://127.0.0.1:")
        address = line.split()[3]
        with chromium() as browser:
            context = browser.new_context(viewport={"width": 1600, "height": 900})
            # MLflow's assistant covers a third of the page until it is first closed.
            context.add_init_script("localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true')")
            context.set_default_timeout(60_000)
            page = context.new_page()
            expect.set_options(timeout=60_000)
            wait_for(lambda: answers(page, address))
            landing(page, expect)
            page.screenshot(path=SCREENSHOTS / "experiments.png")
            curves(page, expect)
            page.screenshot(path=SCREENSHOTS / "curves.png")
            page.goto(address)
            three_runs(page, expect)
            page.goto(address)
            page.get_by_role("link", name="longer: train.epochs=4").click()
            link = page.get_by_role("link", name="report", exact=True).first
            assert "/artifacts/report.html" in link.get_attribute("href")
            page.goto(address.partition("#")[0] + link.get_attribute("href"))
            expect(page.get_by_text("report.html").first).to_be_visible()
            page.wait_for_timeout(3000)
            page.screenshot(path=SCREENSHOTS / "report.png")
    finally:
        for process in [*psutil.Process(ui.pid).children(recursive=True), ui]:
            process.terminate()
        ui.communicate()


def answers(page, address):
    from playwright.sync_api import Error

    try:
        page.goto(address)
    except Error:
        return False
    return True


def texts(locator, axis):
    """The elements' texts in their order along an axis; the page's source has them in any order."""
    return [element.inner_text().strip() for element in sorted(locator.all(), key=lambda e: e.bounding_box()[axis])]


def lines(page):
    """The names of the experiments whose curves are in the first chart."""
    return set(page.evaluate("document.querySelector('.js-plotly-plot').data.map(trace => trace.name)"))


def landing(page, expect):
    """The table: accuracies and differing parameters as columns, best first, no common parameters."""
    expect(page.get_by_text("4 matching runs")).to_be_visible()
    expect(page.locator(".ag-header-cell").filter(has_text="test.accuracy")).to_be_visible()
    shown = [text for text in texts(page.locator(".ag-header-cell"), "x") if "." in text]
    assert shown[:2] == ["validation.accuracy", "test.accuracy"]
    assert {"classifier.kind", "features.grid", "train.epochs"} & set(shown)
    assert not {"seed", "data.dataset", "train.batch_size"} & set(shown)
    cells = page.locator('.ag-row [col-id="metrics.`validation.accuracy`"]')
    expect(cells).to_have_count(4)
    accuracies = [float(text) for text in texts(cells, "y")]
    assert accuracies == sorted(accuracies, reverse=True)


def curves(page, expect):
    """After one click: all learning curves in one chart; below the charts, a table of differences."""
    page.locator('label:has(input[value="CHART"])').click()
    for name in ("validation_loss", "train_loss"):
        expect(page.get_by_text(name, exact=True).first).to_be_visible()
    expect(page.locator(".js-plotly-plot .scatterlayer").first).to_be_visible()
    assert len(lines(page)) == 4
    # The interface draws only what is in sight.
    page.get_by_role("figure").filter(has_text="Differences").scroll_into_view_if_needed()
    expect(page.get_by_text("Show differences only")).to_be_visible()
    page.wait_for_timeout(2000)


def three_runs(page, expect):
    """Three rows selected and compared: their differences, results and curves."""
    expect(page.locator(".ag-row [col-id] input[type=checkbox]").first).to_be_attached()
    for name in ("ridge: ", "longer: ", "coarse: "):
        row = page.locator(".ag-row").filter(has_text=name).first.get_attribute("row-index")
        page.locator(f'.ag-row[row-index="{row}"] .ag-selection-checkbox input').first.click(force=True)
    page.get_by_role("button", name="Compare", exact=True).click()
    expect(page.get_by_text("Comparing 3 Runs from 1 Experiment")).to_be_visible()
    for name in ("classifier.kind", "features.grid", "train.epochs", "test.accuracy"):
        expect(page.get_by_text(name, exact=True).first).to_be_visible()
    page.wait_for_timeout(2000)
    page.screenshot(path=SCREENSHOTS / "three-runs.png", full_page=True)
    # The table renders only visible rows: derive a lower curve's link from the first one's.
    first = page.get_by_role("link", name="code.accuracy", exact=True).first.evaluate("link => link.href")
    page.goto(first.replace("code.accuracy", "validation_loss"))
    expect(page.locator(".js-plotly-plot .scatterlayer").first).to_be_visible()
    names = {name.partition(":")[0] for name in lines(page)}
    assert names == {"ridge", "longer", "coarse"}
    page.wait_for_timeout(2000)
    page.screenshot(path=SCREENSHOTS / "three-curves.png")


@pytest.mark.slow
def test_a_reverted_parameter_adds_no_row_and_restored_results_are_marked(varied):
    client = client_of(varied)
    before = content(client, ROWS)
    varied.set("classifier.kind=k_nearest_neighbors")
    varied.run("dvc", "repro", CONVAE_TRACKING="off")
    for kind in ("logistic_regression", "k_nearest_neighbors"):
        varied.set(f"classifier.kind={kind}")
        output = varied.run("dvc", "repro").stdout
        assert "Stage 'evaluate' is cached - skipping run" in output
        assert "Running stage 'report'" in output  # its page is only in git
    assert sync(varied) == NOTHING
    origins = {
        run.data.params["classifier.kind"]: run.data.tags["convae.origin"]
        for run in recorded(client)
        if run.data.tags["dvc.stage"] == "evaluate"
    }
    restored = [kind for kind, origin in origins.items() if origin == "restored"]
    assert restored == ["k_nearest_neighbors"]
    (new,) = [row for row in content(client, ROWS) if row not in before]
    assert ("classifier.kind", "k_nearest_neighbors") in new[2]
