"""What is written to MLflow about executions, while they run as well as from dvc.lock alone."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple

import psutil

from convae.history.git import Place
from convae.history.lock import CODE, REPORTS, Execution, chain, written
from convae.names import PARTS
from convae.tracking.context import process_tags, this_host
from convae.tracking.facts import Fact, facts_in, files_in
from convae.tracking.moving import REPOSITORY
from convae.tracking.store import ending, every_run, open_store, store_root
from convae.tracking.wording import GONE, all_params, code, hash_tags, link, row_name, tag_name, way_back

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
BATCH_SIZES = {"params": 100, "tags": 100, "metrics": 1000}  # the most that MLflow's servers take at once


class Input(NamedTuple):
    """Data that a stage read."""

    path: str
    name: str
    digest: str


class Records:
    """The runs of one experiment and of the stages behind it in one MLflow store.

    Its methods raise whatever MLflow and what lies under it come up with.
    """

    def __init__(self, uri: str, experiment: str) -> None:
        """Open the store; its experiments `<experiment>` and `<experiment>-stages` are made where missing."""
        self.client, (self.rows, self.stages) = open_store(uri, experiment, f"{experiment}-stages")
        self.producer = cache(self._producer)

    def begin(self, execution: Execution, place: Place, tags: Mapping[str, str], origin: str = EXECUTED) -> str:
        """A run of a stage, with all that is known before its end; gives its id.

        What was stopped before its end goes on in the run that it has.
        """
        experiment = f" {place.name}" if place.command.startswith("dvc exp") else ""
        dataset = _dataset(execution, place)
        about = {
            ORIGIN: origin,
            ATTEMPT: execution.attempt_key,
            "dvc.stage": execution.stage,
            COMMAND: place.command,
            NOTE: self.note(execution, place),
        }
        about |= {**hash_tags("input", execution.inputs), **tags}
        stopped = self._stopped(execution) if origin == EXECUTED else None
        if stopped:
            self.client.update_run(stopped, "RUNNING")
            self.log(stopped, tags=about)
        run_id = stopped or str(
            self.client.create_run(
                self.stages, place.time, about, f"{execution.stage} {dataset}{experiment}"
            ).info.run_id
        )
        self.log(run_id, params=written(execution.params))
        self._log_datasets(run_id, _datasets(execution.inputs, dataset))
        return run_id

    def epochs(self, run_id: str) -> set[tuple[str, int, float]]:
        """What a run holds already of numbers that go by epoch."""
        names = [name for name in self.client.get_run(run_id).data.metrics if not name.startswith("system/")]
        return {
            (name, entry.step, entry.value) for name in names for entry in self.client.get_metric_history(run_id, name)
        }

    def complete(self, run_id: str, execution: Execution, place: Place, folder: Path) -> None:
        """Write what came of an execution: hashes, numbers, figures and models.

        The key comes last: what has none is not whole.
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
        """A run for an execution that is known from dvc.lock alone."""
        commit = {"mlflow.source.git.commit": place.commit} if place.commit else {}
        run_id = self.begin(execution, place, process_tags() | commit, RESTORED)
        self.complete(run_id, execution, place, folder)
        self.client.set_terminated(run_id, "FINISHED", place.time)

    def add_row(self, report: Execution, place: Place, folder: Path) -> None:
        """A row for the experiment that `report` tells about: all parameters, final numbers, curves."""
        tags = {**process_tags(), REPOSITORY: this_repository()}
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
        """Name a row and say where it is from."""
        stages = [*chain(place.executions, report), report]
        links = {one.stage: link(one.stage, self.find(self.stages, KEY, one.key)) for one in stages}
        shown = link("report", self.find(self.stages, KEY, report.key), "/artifacts/report.html")
        note = f"**{shown}**\n\nStages: {', '.join(links.values())}\n\n{way_back(place.command)}"
        name = row_name(report, place)
        self.log(run_id, tags={"mlflow.runName": name, COMMAND: place.command, NOTE: note})

    def describe_run(self, run_id: str, execution: Execution, place: Place) -> None:
        """Say of a stage's run where it is kept now."""
        self.log(run_id, tags={COMMAND: place.command, NOTE: self.note(execution, place)})

    def forget_place(self, row: "Recorded") -> None:
        """Say of a row that nothing brings it back any more."""
        tags = row.data.tags
        note = tags.get(NOTE, "").replace(way_back(tags.get(COMMAND, "")), way_back(GONE))
        self.log(row.info.run_id, tags={COMMAND: GONE, NOTE: note})

    def note(self, execution: Execution, place: Place) -> str:
        """Markdown: how to get an execution back, which runs it builds upon, and what it read of them."""
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

    def find(self, experiment: str, tag: str, value: str) -> "Recorded | None":
        """The oldest run whose tag has this value."""
        runs = self.client.search_runs(
            [experiment], f"tags.`{tag}` = '{value}'", order_by=["start_time"], max_results=1
        )
        return runs[0] if runs else None

    def close_vanished(self) -> None:
        """Close the runs of this host whose process is gone without having done so itself.

        A stage was killed unless it left word how it ended. What dvc.lock tells of and is not whole is removed: it
        will be written once more.
        """
        of_this_host = f"attributes.status = 'RUNNING' and tags.`process.host` = '{this_host()}'"
        for run in [run for table in (self.stages, self.rows) for run in every_run(self.client, table, of_this_host)]:
            tags = run.data.tags
            if _is_alive(int(tags["process.pid"]), float(tags["process.started"])):
                continue
            word = ending(tags)
            status = (word.exists() and word.read_text("utf-8")) or "KILLED"
            if status == "FINISHED" or tags.get(ORIGIN) != EXECUTED:
                self.remove(run.info.run_id)
            else:
                self.client.set_terminated(run.info.run_id, status)
            word.unlink(missing_ok=True)

    def remove(self, run_id: str) -> None:
        """Delete a run and the models that it made."""
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
        """Write to a run, in batches that a server takes."""
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

    def _stopped(self, execution: Execution) -> str | None:
        runs = self.client.search_runs(
            [self.stages],
            f"tags.`{ATTEMPT}` = '{execution.attempt_key}' and attributes.status = 'KILLED'",
            max_results=1,
        )
        return str(runs[0].info.run_id) if runs else None

    def _producer(self, path: str, md5: str) -> "Recorded | None":
        return self.find(self.stages, tag_name("output", path), md5)

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
        """Ids of the models that were read or made; their bytes stay with DVC."""
        from mlflow.entities import LoggedModelOutput
        from mlflow.utils.mlflow_tags import MLFLOW_MODEL_IS_EXTERNAL

        made = []
        for path, md5 in execution.outputs.items():
            if path.startswith(MODELS):
                model = self.client.create_logged_model(
                    self.stages,
                    name=PurePosixPath(path).name,
                    source_run_id=run_id,
                    tags={"path": path, "md5": md5, MLFLOW_MODEL_IS_EXTERNAL: "true"},
                    params=written(execution.params),
                )
                self.client.finalize_logged_model(model.model_id, "READY")
                made.append(str(model.model_id))
        if made:
            self.client.log_outputs(run_id, [LoggedModelOutput(model_id, 0) for model_id in made])
        return made + self._link_models(run_id, execution.inputs)

    def _link_models(self, run_id: str, inputs: Mapping[str, str]) -> list[str]:
        """Ids of the models among `inputs`, of which the run then tells that it read them."""
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
        """Write numbers to a run, but for epochs that it had while it ran, and those about a part to the models too."""
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
    """Where this repository lies: another one may have experiments of the same name."""
    return f"{this_host()} {store_root()}"


def _datasets(inputs: Mapping[str, str], dataset: str) -> list[Input]:
    """The data among inputs, which go by path with their hash."""
    return [
        Input(path, f"{dataset} {path.removeprefix('data/')}".strip(), md5.removesuffix(".dir"))
        for path, md5 in inputs.items()
        if path.startswith(DATA)
    ]


def _dataset(execution: Execution, place: Place) -> str:
    """Name of the data set, which most stages have among their parameters."""
    source = next((one for one in [execution, *place.executions.values()] if "data.dataset" in one.params), None)
    return str(source.params["data.dataset"]) if source else ""


def _is_alive(pid: int, started: float) -> bool:
    try:
        return abs(psutil.Process(pid).create_time() - started) < 1
    except psutil.NoSuchProcess:
        return False
