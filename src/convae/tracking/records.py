"""What is written to MLflow about executions, while they run as well as from dvc.lock alone."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import psutil

from convae.tracking.context import process_tags, this_host
from convae.tracking.facts import Fact, facts_in, files_in
from convae.tracking.git import Place, lock_at
from convae.tracking.lock import CODE, REPORTS, Execution, chain, reports_in, written
from convae.tracking.store import open_store

if TYPE_CHECKING:
    from mlflow.entities import Metric
    from mlflow.entities import Run as Recorded

# Names of tags.
KEY, INPUTS_KEY, ORIGIN, COMMAND = "convae.key", "convae.inputs_key", "convae.origin", "convae.command"
VANISHED = "process.vanished"
NOTE = "mlflow.note.content"
# Values of ORIGIN.
EXECUTED, RESTORED = "executed", "restored"

DATA = ("data/raw/", "data/prepared/", "data/features", "data/predictions")
MODELS = "models/"
PARTS = ("train", "validation", "test")
BATCH_SIZES = {"params": 100, "tags": 100, "metrics": 1000}  # the most that MLflow's servers take at once
SHOWN_CHANGES = 3


class Records:
    """The runs of one experiment and of the stages behind it in one MLflow store.

    Its methods raise whatever MLflow and what lies under it come up with.
    """

    def __init__(self, uri: str, experiment: str) -> None:
        """Open the store; its experiments `<experiment>` and `<experiment>-stages` are made where missing."""
        self.client, (self.rows, self.stages) = open_store(uri, experiment, f"{experiment}-stages")
        self.producer = cache(self._producer)

    def begin(self, execution: Execution, place: Place, tags: Mapping[str, str], origin: str = EXECUTED) -> str:
        """A new run of a stage, with all that is known before its end; gives its id."""
        experiment = f" {place.name}" if place.command.startswith("dvc exp") else ""
        run = self.client.create_run(
            self.stages,
            place.time,
            {ORIGIN: origin, INPUTS_KEY: execution.inputs_key, "dvc.stage": execution.stage, **tags},
            f"{execution.stage} {_dataset(execution, place)}{experiment}",
        )
        run_id = str(run.info.run_id)
        self.log(run_id, params=written(execution.params))
        return run_id

    def complete(self, run_id: str, execution: Execution, place: Place, folder: Path) -> None:
        """Write what came of an execution: hashes, numbers, figures, data sets, models and where all that is from.

        Writing may have broken off before: what is there already is not written twice, and the key comes last.
        """
        hashes = {**_tags("input", execution.inputs), **_tags("output", execution.outputs)}
        tags = {**hashes, COMMAND: place.command, NOTE: self.note(execution, place)}
        self.log(run_id, params=written(execution.params), tags=tags)
        files = files_in(folder, execution.outputs)
        for file in files:
            below = file.parent.relative_to(REPORTS).as_posix()
            self.client.log_artifact(run_id, str(folder / file), None if below == "." else below)
        datasets = self._log_datasets(run_id, execution.inputs, _dataset(execution, place))
        models = self._log_models(run_id, execution, place.time)
        self._log_facts(run_id, facts_in(folder, files), place.time, models, datasets)
        self.log(run_id, tags={KEY: execution.key})

    def restore(self, execution: Execution, place: Place, folder: Path) -> str:
        """A run for an execution that is known from dvc.lock alone."""
        commit = {"mlflow.source.git.commit": place.commit} if place.commit else {}
        run_id = self.begin(execution, place, process_tags() | commit, RESTORED)
        self.complete(run_id, execution, place, folder)
        self.client.set_terminated(run_id, "FINISHED", place.time)
        return run_id

    def add_row(self, report: Execution, place: Place, folder: Path) -> str:
        """A row for the experiment that `report` tells about: all parameters, final numbers, curves."""
        run_id = str(self.client.create_run(self.rows, place.time, process_tags()).info.run_id)
        self.describe_row(run_id, report, place)
        self.log(run_id, params=written(report.params))
        used = chain(place.executions, report)
        self._log_datasets(
            run_id, {path: md5 for one in used for path, md5 in one.inputs.items()}, _dataset(report, place)
        )
        self._link_models(run_id, report.inputs)
        self._log_facts(run_id, facts_in(folder, files_in(folder, report.inputs)), place.time)
        self.log(run_id, tags={KEY: report.experiment_key})
        self.client.set_terminated(run_id, "FINISHED", place.time)
        return run_id

    def describe_row(self, run_id: str, report: Execution, place: Place) -> None:
        """Name a row and say where it is from."""
        stages = [*chain(place.executions, report), report]
        links = {one.stage: _link(one.stage, self.find(self.stages, KEY, one.key)) for one in stages}
        shown = _link("report", self.find(self.stages, KEY, report.key), "/artifacts/report.html")
        note = f"**{shown}**\n\nStages: {', '.join(links.values())}\n\n{_way_back(place)}"
        name = row_name(report, place)
        self.log(run_id, tags={"mlflow.runName": name, COMMAND: place.command, NOTE: note})

    def note(self, execution: Execution, place: Place) -> str:
        """Markdown: how to get an execution back, which runs it builds upon, and what it read of them."""
        lines = ["| input | hash | written by |", "| --- | --- | --- |"]
        producers: dict[str, None] = {}
        for path, md5 in execution.inputs.items():
            producer = None if path.startswith(CODE) else self.producer(path, md5)
            if producer or path.startswith(DATA):
                link = _link(producer.info.run_name, producer) if producer else ""
                lines.append(f"| {_code(path)} | `{md5[:8]}` | {link} |")
                producers[link] = None
        links = ", ".join(filter(None, producers))
        table = "\n".join(lines) if len(lines) > 2 else ""
        return "\n\n".join(filter(None, [_way_back(place), links and f"From {links}", table]))

    def find(self, experiment: str, tag: str, value: str) -> "Recorded | None":
        """The oldest run whose tag has this value."""
        runs = self.client.search_runs(
            [experiment], f"tags.`{tag}` = '{value}'", order_by=["start_time"], max_results=1
        )
        return runs[0] if runs else None

    def all(self, experiment: str, condition: str = "") -> Iterator["Recorded"]:
        """Every run that fulfils a condition, oldest first."""
        token = None
        while True:
            page = self.client.search_runs([experiment], condition, order_by=["start_time"], page_token=token)
            yield from page
            token = page.token
            if not token:
                return

    def close_vanished(self) -> None:
        """Close as killed the stages of this host whose process is gone without having done so itself.

        What was being written from dvc.lock, and will be again, is removed.
        """
        of_this_host = f"attributes.status = 'RUNNING' and tags.`process.host` = '{this_host()}'"
        for run in [*self.all(self.stages, of_this_host), *self.all(self.rows, of_this_host)]:
            tags = run.data.tags
            if _is_alive(int(tags["process.pid"]), float(tags["process.started"])):
                continue
            if tags.get(ORIGIN) == EXECUTED:
                self.log(run.info.run_id, tags={VANISHED: "true"})
                self.client.set_terminated(run.info.run_id, "KILLED")
            else:
                self.client.delete_run(run.info.run_id)

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

    def _producer(self, path: str, md5: str) -> "Recorded | None":
        return self.find(self.stages, _tag("output", path), md5)

    def _log_datasets(self, run_id: str, inputs: Mapping[str, str], dataset: str) -> dict[str, tuple[str, str]]:
        """Name and digest of what was read, by the part of the data set that it is."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        entries: list[DatasetInput] = []
        parts = {}
        for path, md5 in inputs.items():
            if path.startswith(DATA):
                name, digest = f"{dataset} {path.removeprefix('data/')}".strip(), md5.removesuffix(".dir")
                part = PurePosixPath(path).name
                source = json.dumps({"path": path, "md5": md5})
                tags = [InputTag("mlflow.data.context", part)] if part in PARTS else []
                entries.append(DatasetInput(Dataset(name, digest, "local", source), tags))
                if part in PARTS:
                    parts[part] = name, digest
        if entries:
            self.client.log_inputs(run_id, entries)
        return parts

    def _log_models(self, run_id: str, execution: Execution, time: int) -> list[str]:
        """Ids of the models that were read or made; their bytes stay with DVC."""
        from mlflow.entities import LoggedModelOutput
        from mlflow.utils.mlflow_tags import MLFLOW_MODEL_IS_EXTERNAL

        there = self.client.search_logged_models([self.stages], f"source_run_id = '{run_id}'")
        made = {model.tags["path"]: model for model in there}
        for path, md5 in execution.outputs.items():
            if path.startswith(MODELS) and path not in made:
                made[path] = self.client.create_logged_model(
                    self.stages,
                    name=PurePosixPath(path).name,
                    source_run_id=run_id,
                    tags={"path": path, "md5": md5, MLFLOW_MODEL_IS_EXTERNAL: "true"},
                    params=written(execution.params),
                )
        ids = [str(model.model_id) for model in made.values()]
        for model_id in ids:
            self.client.finalize_logged_model(model_id, "READY")
        outputs = self.client.get_run(run_id).outputs
        linked = {output.model_id for output in outputs.model_outputs} if outputs else set()
        new = [LoggedModelOutput(model_id, 0) for model_id in ids if model_id not in linked]
        if new:
            self.client.log_outputs(run_id, new)
        return ids + self._link_models(run_id, execution.inputs)

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
        datasets: Mapping[str, tuple[str, str]] | None = None,
    ) -> None:
        """Write numbers to a run, where they are not there yet, and those about data to the models too."""
        from mlflow.entities import Metric

        names = {fact.name for fact in facts} & self.client.get_run(run_id).data.metrics.keys()
        there = {(name, entry.step) for name in names for entry in self.client.get_metric_history(run_id, name)}
        entries = []
        for fact in facts:
            if (fact.name, fact.step) not in there:
                entries.append(Metric(fact.name, fact.value, time, fact.step))
                about = (datasets or {}).get(fact.name.partition(".")[0])
                if about:
                    entries += [Metric(fact.name, fact.value, time, fact.step, model, *about) for model in models]
        self.log(run_id, metrics=entries)


def row_name(report: Execution, place: Place) -> str:
    """The place's name, and what sets an experiment's parameters apart."""
    before = next(reports_in(lock_at(place.baseline)), None) if place.baseline else None
    if before is None:
        return place.name
    changes = [
        f"{name}={value}" for name, value in written(report.params).items() if written(before.params).get(name) != value
    ]
    more = ", …" if len(changes) > SHOWN_CHANGES else ""
    return f"{place.name}: {', '.join(changes[:SHOWN_CHANGES])}{more}" if changes else place.name


def _dataset(execution: Execution, place: Place) -> str:
    """Name of the data set, which most stages have among their parameters."""
    source = next((one for one in [execution, *place.executions.values()] if "data.dataset" in one.params), None)
    return str(source.params["data.dataset"]) if source else ""


def _tags(prefix: str, hashes: Mapping[str, str]) -> dict[str, str]:
    return {_tag(prefix, path): md5 for path, md5 in hashes.items()}


def _tag(prefix: str, path: str) -> str:
    return f"{prefix}." + re.sub(r"[^\w./: -]", "_", path)  # what MLflow allows


def _link(text: str, run: "Recorded | None", page: str = "") -> str:
    if run is None:
        return text
    return f"[{text}](#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}{page})"


def _code(text: str) -> str:
    return "`" + re.sub(r"[`|]", "_", text) + "`"


def _way_back(place: Place) -> str:
    return f"Bring it back: `{place.command}`" if place.command else "In the workspace, not committed yet."


def _is_alive(pid: int, started: float) -> bool:
    try:
        return abs(psutil.Process(pid).create_time() - started) < 1
    except psutil.NoSuchProcess:
        return False
