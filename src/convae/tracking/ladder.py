"""The cells of the ladder as rows in MLflow."""

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from convae.files import read_json
from convae.history.lock import content_hash
from convae.params import TrackingParams
from convae.tracking.records import KEY
from convae.tracking.store import WARNING, every_run, one_at_a_time, open_store, presentable, store_root, store_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient


CHANGING = ("commit", "training_seconds", "extraction_seconds", "protocol", "note", "control")


def ladder_cells() -> list[dict[str, Any]]:
    """The rows of reports/ladder.json; none without that file."""
    path = store_root() / "reports/ladder.json"
    return list(read_json(path)) if path.exists() else []


def record_live(tracking: TrackingParams, cell: Mapping[str, Any]) -> None:
    """Add the row of a cell that was just measured; if the store cannot be used, warn and continue."""
    uri = store_uri(tracking)
    if uri is None:
        return
    try:
        record(uri, tracking.experiment, [cell])
    except Exception as error:  # MLflow, its database driver and its HTTP client raise all kinds
        print(WARNING.format("ladder", presentable(error)), file=sys.stderr)


def record(uri: str, experiment: str, cells: Sequence[Mapping[str, Any]]) -> int:
    """Add a row for each cell that the experiment `<experiment>-ladder` lacks; return how many were added.

    Raises:
        Exception: any error of MLflow or of the store under it.
    """
    if not cells:
        return 0
    client, (ladder,) = open_store(uri, f"{experiment}-ladder")
    with one_at_a_time():
        known = {run.data.tags.get(KEY) for run in every_run(client, ladder)}
        missing = [cell for cell in cells if _key(cell) not in known]
        for cell in missing:
            _add(client, ladder, cell)
    return len(missing)


def _key(cell: Mapping[str, Any]) -> str:
    """A hash of the row's numbers: the same ones measured again, or described in other words, are not another row."""
    return content_hash({name: value for name, value in cell.items() if name not in CHANGING})


def _add(client: "MlflowClient", experiment: str, cell: Mapping[str, Any]) -> None:
    from mlflow.entities import Metric, Param, RunTag

    run = client.create_run(experiment, run_name=f"{cell['system']} {cell['dataset']} seed {cell['seed']}")
    time = run.info.start_time
    numbers = {name: value for name, value in cell.items() if isinstance(value, (int, float)) and name != "seed"}
    metrics = [Metric(name, float(value), time, 0) for name, value in numbers.items()]
    for entry in cell.get("by_dimension") or ():
        metrics.append(Metric("test_accuracy_by_dimension", entry["test_accuracy"], time, entry["dimension"]))
    words = {name: value for name, value in cell.items() if name == "seed" or isinstance(value, str)}
    params = [Param(name, str(value)) for name, value in words.items()]
    client.log_batch(run.info.run_id, metrics, params, [RunTag(KEY, _key(cell))], synchronous=True)
    client.set_terminated(run.info.run_id, "FINISHED")
