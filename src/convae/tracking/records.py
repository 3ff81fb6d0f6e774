"""What is written to MLflow about executions, whether they are running now or known only from dvc.lock."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple

import psutil

from convae.history.git import Place
from convae.history.lock import CODE, REPORTS, Execution, chain, written
from convae.names import PARTS, code
from convae.tracking.context import EXPERIMENT, USER, process_tags, this_host
from convae.tracking.facts import Fact, facts_in, files_in
from convae.tracking.moving import REPOSITORY
from convae.tracking.store import ending, every_run, open_store, store_root
from convae.tracking.wording import GONE, all_params, hash_tags, link, row_name, tag_name, way_back

if TYPE_CHECKING:
    from mlflow.entities import Metric
    from mlflow.entities import Run as Recorded

# Names of tags.
KEY, ORIGIN, COMMAND = "convae.key", "convae.origin", "convae.command"
ATTEMPT = "convae.attempt"
NOTE = "mlflow.note.content"
# Values of ORIGIN.
EXECUTED, RESTORED = "executed", "restored"

DATA = ("data/raw/", "data/prepared/", "data/features", "data/predictions")
MODELS = "models/"
BATCH_SIZES = {"params": 100, "tags": 100, "metrics": 1000}  # limits of MLflow's servers per request


class Input(NamedTuple):
    """A data set that a stage read, with its name and MD5."""

    path: str
    name: str
    digest: str


class Records:
    """The runs of one experiment and its stages in one MLflow store.

    A stage execution is a run in the MLflow experiment `<experiment>-stages`. An experiment of our own is a *row*: one
    run in `<experiment>` with all parameters and final metrics, so that MLflow can compare experiments line by line.

    Methods raise any error of MLflow or its database.
    """

    def __init__(self, uri: str, experiment: str) -> None:
        """Open the store; create its experiments `<experiment>` and `<experiment>-stages` if they are missing."""
        self.client, (self.rows, self.stages) = open_store(uri, experiment, f"{experiment}-stages")
        self.producer = cache(lambda path, md5: self.find(self.stages, md5, tag_name("output", path)))

    def begin(self, execution: Execution, place: Place, tags: Mapping[str, str], origin: str = EXECUTED) -> str:
        """Start the run of a stage with everything known before its end; return the run's id.

        If an earlier attempt was stopped, its run is resumed.
        """
        dataset = _dataset(execution, place)
        about = {
            ORIGIN: origin,
            ATTEMPT: execution.attempt_key,
            "dvc.stage": execution.stage,
            COMMAND: place.command,
            NOTE: self.note(execution, place),
            REPOSITORY: this_repository(),
            **hash_tags("input", execution.inputs),
            **tags,
        }
        name = f"{execution.stage} {dataset}" + (f" {place.name}" if place.command.startswith("dvc exp") else "")
        stopped = self._stopped(execution) if origin == EXECUTED else None
        if stopped:
            run_id = str(stopped.info.run_id)
            self.client.update_run(run_id, "RUNNING", name)
            if EXPERIMENT in stopped.data.tags.keys() - about.keys():
                self.client.delete_tag(run_id, EXPERIMENT)
            self.log(run_id, tags=about)
        else:
            run_id = str(self.client.create_run(self.stages, place.time, about, name).info.run_id)
        self.log(run_id, params=written(execution.params))
        self._log_datasets(run_id, _datasets(execution.inputs, dataset))
        return run_id

    def epochs(self, run_id: str) -> set[tuple[str, int, float]]:
        """Return the name, step and value of every metric that a run already has, except system metrics."""
        names = [name for name in self.client.get_run(run_id).data.metrics if not name.startswith("system/")]
        history = self.client.get_metric_history
        return {(name, entry.step, entry.value) for name in names for entry in history(run_id, name)}

    def complete(self, run_id: str, execution: Execution, place: Place, folder: Path) -> None:
        """Record the results of an execution: hashes, numbers, figures and models.

        The key is written last, so that a run without a key is known to be incomplete.
        """
        self.log(run_id, tags=hash_tags("output", execution.outputs))
        files = files_in(folder, execution.outputs)
        for file in files:
            below = file.parent.relative_to(REPORTS).as_posix()
            self.client.log_artifact(run_id, str(folder / file), None if below == "." else below)
        models = self._log_models(run_id, execution)
        parts = {PurePosixPath(one.path).name: one for one in _datasets(execution.inputs, _dataset(execution, place))}
        self._log_facts(run_id, facts_in(folder, files), place.time, models, parts)
        self.log(run_id, tags={KEY: execution.key})

    def restore(self, execution: Execution, place: Place, folder: Path) -> None:
        """Add a finished run for an execution known only from dvc.lock."""
        commit = {"mlflow.source.git.commit": place.commit} if place.commit else {}
        run_id = self.begin(execution, place, process_tags() | commit, RESTORED)
        self.complete(run_id, execution, place, folder)
        self.client.set_terminated(run_id, "FINISHED", place.time)

    def add_row(self, report: Execution, place: Place, folder: Path) -> None:
        """Add a row for the experiment behind `report`: all parameters, final metrics and curves."""
        tags = {**process_tags(), REPOSITORY: this_repository()}
        writer = self.find(self.stages, report.key)
        if writer and USER in writer.data.tags:
            tags[USER] = writer.data.tags[USER]
        run_id = str(self.client.create_run(self.rows, place.time, tags).info.run_id)
        self.describe_row(run_id, report, place)
        self.log(run_id, params=written(all_params(place.executions, report)))
        inputs = {path: md5 for one in chain(place.executions, report) for path, md5 in one.inputs.items()}
        self._log_datasets(run_id, _datasets(inputs, _dataset(report, place)))
        self._link_models(run_id, report.inputs)
        self._log_facts(run_id, facts_in(folder, files_in(folder, report.inputs)), place.time)
        self.log(run_id, tags={KEY: report.experiment_key})
        self.client.set_terminated(run_id, "FINISHED", place.time)

    def describe_row(self, run_id: str, report: Execution, place: Place) -> None:
        """Name a row, and note its origin and how to restore it."""
        stages = [*chain(place.executions, report), report]
        links = {one.stage: link(one.stage, self.find(self.stages, one.key)) for one in stages}
        shown = link("report", self.find(self.stages, report.key), "/artifacts/report.html")
        note = f"**{shown}**\n\nStages: {', '.join(links.values())}\n\n{way_back(place.command)}"
        name = row_name(report, place)
        self.log(run_id, tags={"mlflow.runName": name, COMMAND: place.command, NOTE: note})

    def describe_run(self, run_id: str, execution: Execution, place: Place) -> None:
        """Update a stage's run: note how to restore its results now."""
        self.log(run_id, tags={COMMAND: place.command, NOTE: self.note(execution, place)})

    def forget_place(self, run: "Recorded") -> None:
        """Note on a run that no commit or experiment has its results any more."""
        tags = run.data.tags
        note = tags.get(NOTE, "").replace(way_back(tags.get(COMMAND, "")), way_back(GONE))
        self.log(run.info.run_id, tags={COMMAND: GONE, NOTE: note})

    def note(self, execution: Execution, place: Place) -> str:
        """Write a note in Markdown: how to restore an execution, and which runs wrote its inputs."""
        lines = ["| input | hash | written by |", "| --- | --- | --- |"]
        producers: dict[str, None] = {}
        for path, md5 in execution.inputs.items():
            producer = None if path.startswith(CODE) else self.producer(path, md5)
            if producer or path.startswith(DATA):
                writer = link(producer.info.run_name, producer) if producer else ""
                lines.append(f"| {code(path)} | `{md5[:8]}` | {writer} |")
                producers[writer] = None
        links = ", ".join(filter(None, producers))
        table = "\n".join(lines) if len(lines) > 2 else ""
        return "\n\n".join(filter(None, [way_back(place.command), links and f"From {links}", table]))

    def find(self, experiment: str, value: str, tag: str = KEY) -> "Recorded | None":
        """Return the oldest run whose tag has this value, or None."""
        tagged = f"tags.`{tag}` = '{value}'"
        runs = self.client.search_runs([experiment], tagged, order_by=["start_time"], max_results=1)
        return runs[0] if runs else None

    def close_vanished(self) -> None:
        """Close the runs of this repository whose process is gone but which are still marked as running.

        Such a stage was killed, unless it left a file with its status because the store was out of reach. Incomplete
        runs that dvc.lock can restore are removed, so that the next sync writes them again.
        """
        of_this_host = f"attributes.status = 'RUNNING' and tags.`process.host` = '{this_host()}'"
        for run in [run for table in (self.stages, self.rows) for run in every_run(self.client, table, of_this_host)]:
            tags = run.data.tags
            # Words left by stages of another repository are there. Runs of older versions don't say where they ran.
            elsewhere = tags.get(REPOSITORY, this_repository()) != this_repository()
            if elsewhere or _is_alive(int(tags["process.pid"]), float(tags["process.started"])):
                continue
            word = ending(tags)
            status = (word.exists() and word.read_text("utf-8")) or "KILLED"
            if status == "FINISHED" or tags.get(ORIGIN) != EXECUTED:
                self.remove(run.info.run_id)
            else:
                self.client.set_terminated(run.info.run_id, status)
            word.unlink(missing_ok=True)

    def remove(self, run_id: str) -> None:
        """Delete a run and its logged models."""
        for model in self.client.search_logged_models([self.stages], f"source_run_id = '{run_id}'"):
            self.client.delete_logged_model(model.model_id)
        self.client.delete_run(run_id)

    def log(
        self,
        run_id: str,
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
        metrics: Iterable["Metric"] = (),
    ) -> None:
        """Write to a run in batches that MLflow's servers accept."""
        from mlflow.entities import Param, RunTag

        entries: dict[str, Iterator[Any]] = {
            "params": (Param(name, value) for name, value in (params or {}).items()),
            "tags": (RunTag(name, value) for name, value in (tags or {}).items()),
            "metrics": iter(metrics),
        }
        while batch := {kind: list(islice(items, BATCH_SIZES[kind])) for kind, items in entries.items()}:
            if not any(batch.values()):
                return
            self.client.log_batch(run_id, **batch, synchronous=True)

    def _stopped(self, execution: Execution) -> "Recorded | None":
        killed = f"tags.`{ATTEMPT}` = '{execution.attempt_key}' and attributes.status = 'KILLED'"
        runs = self.client.search_runs([self.stages], killed, max_results=1)
        return runs[0] if runs else None

    def _log_datasets(self, run_id: str, datasets: Sequence[Input]) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        entries = []
        for one in datasets:
            part = PurePosixPath(one.path).name
            tags = [InputTag("mlflow.data.context", part)] if part in PARTS else []
            source = json.dumps({"path": one.path, "md5": one.digest})
            entries.append(DatasetInput(Dataset(one.name, one.digest, "local", source), tags))
        if entries:
            self.client.log_inputs(run_id, entries)

    def _log_models(self, run_id: str, execution: Execution) -> list[str]:
        """Log the models that an execution wrote or read, and return their ids. Their files stay in DVC."""
        from mlflow.entities import LoggedModelOutput
        from mlflow.utils.mlflow_tags import MLFLOW_MODEL_IS_EXTERNAL

        made = []
        params = written(execution.params)
        for path, md5 in execution.outputs.items():
            if path.startswith(MODELS):
                tags = {"path": path, "md5": md5, MLFLOW_MODEL_IS_EXTERNAL: "true"}
                name = PurePosixPath(path).name
                model = self.client.create_logged_model(self.stages, name, run_id, tags, params)
                self.client.finalize_logged_model(model.model_id, "READY")
                made.append(str(model.model_id))
        if made:
            self.client.log_outputs(run_id, [LoggedModelOutput(model_id, 0) for model_id in made])
        return made + self._link_models(run_id, execution.inputs)

    def _link_models(self, run_id: str, inputs: Mapping[str, str]) -> list[str]:
        """Record on the run the models among `inputs`, and return their ids."""
        from mlflow.entities import LoggedModelInput

        read = []
        for path, md5 in inputs.items():
            if path.startswith(MODELS):
                found = self.client.search_logged_models([self.stages], f"tags.md5 = '{md5}'", max_results=1)
                read += [str(model.model_id) for model in found]
        if read:
            self.client.log_inputs(run_id, models=[LoggedModelInput(model_id) for model_id in read])
        return read

    def _log_facts(
        self,
        run_id: str,
        facts: Sequence[Fact],
        time: int,
        models: Sequence[str] = (),
        parts: Mapping[str, Input] | None = None,
    ) -> None:
        """Write numbers to a run, and numbers about one of `parts` to the models as well.

        Epochs that the run logged while it was running are skipped.
        """
        from mlflow.entities import Metric

        epochs = {fact.name for fact in facts if fact.step}
        there = {(name, entry.step) for name in epochs for entry in self.client.get_metric_history(run_id, name)}
        entries = []
        for fact in facts:
            if (fact.name, fact.step) not in there:
                entries.append(Metric(fact.name, fact.value, time, fact.step))
            about = (parts or {}).get(fact.name.partition(".")[0])
            if about:
                entries += [
                    Metric(fact.name, fact.value, time, fact.step, model, about.name, about.digest) for model in models
                ]
        self.log(run_id, metrics=entries)


def this_repository() -> str:
    """Identify this repository by host and folder: others in the same store may have experiments of the same name."""
    return f"{this_host()} {store_root()}"


def _datasets(inputs: Mapping[str, str], dataset: str) -> list[Input]:
    """Return the data sets among inputs, which are hashes by path."""
    return [
        Input(path, f"{dataset} {path.removeprefix('data/')}".strip(), md5.removesuffix(".dir"))
        for path, md5 in inputs.items()
        if path.startswith(DATA)
    ]


def _dataset(execution: Execution, place: Place) -> str:
    """Return the data set's name, from the stage's own parameters or from another stage's; empty if unknown."""
    source = next((one for one in [execution, *place.executions.values()] if "data.dataset" in one.params), None)
    return str(source.params["data.dataset"]) if source else ""


def _is_alive(pid: int, started: float) -> bool:
    try:
        return abs(psutil.Process(pid).create_time() - started) < 1
    except psutil.NoSuchProcess:
        return False
