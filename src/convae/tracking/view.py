"""The default view in MLflow's user interface: best experiment first, and only parameters that differ.

The interface reads a view from a tag of the experiment, in the undocumented format of MLflow's own shared views.
"""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from convae.tracking.records import Records
from convae.tracking.store import every_run

if TYPE_CHECKING:
    from mlflow.entities import Run as Recorded

NAME = "convae"
# The first one sorts the rows. It is the validation accuracy, because test images must not select anything.
ACCURACIES = (
    "validation.accuracy",
    "test.accuracy",
    "test.balanced_accuracy",
    "test.worst_recall",
    "test.majority_accuracy",
)
ERRORS = ("validation.linear_reconstruction_mse", "test.linear_reconstruction_mse")
OPTIONAL = ("code.accuracy",)  # shown if an experiment has it
CURVES = ("validation_loss", "train_loss")
OPTIONAL_CURVES = ("sample_loss", "probe_accuracy")
MOST_PARAMETERS = 12  # a wider table can't be read at a glance
# Columns that every table has, by the interface's own names.
SELECTION, RUN_NAME, ALWAYS_LAST = "1", "attributes.`Run Name`", ("runDateAndNestInfo", "duration")
NAME_WIDTH, COLUMN_WIDTH = 340, 150  # pixels

LINE = {"type": "LINE", "useGlobalXaxisKey": True, "useGlobalLineSmoothing": True}
BAR = {"type": "BAR"}
DIFFERENCES = {
    "type": "DIFFERENCE",
    "chartName": "What differs",
    "compareGroups": ["Parameters", "Model metrics"],
    "showDifferencesOnly": True,
    "showChangeFromBaseline": True,
    "baselineColumnUuid": "",
}


def set_view(records: Records) -> str:
    """Save the view of the current rows; return its path on an MLflow server.

    Raises:
        Exception: any error of MLflow or its database.
    """
    view = _view(list(every_run(records.client, records.rows)))
    # The times only order a menu of views, and there is just one view.
    saved = {"name": "Best first", "createdAt": 0, "updatedAt": 0, "state": json.dumps(view)}
    records.client.set_experiment_tag(records.rows, f"mlflow.sharedViewState.{NAME}", json.dumps(saved))
    return f"/#/experiments/{records.rows}/runs?viewStateShareKey={NAME}"


def _view(rows: "Sequence[Recorded]") -> dict[str, Any]:
    has_labels = any(ACCURACIES[0] in row.data.metrics for row in rows)
    measured = {name for row in rows for name in row.data.metrics}
    shown = [*(ACCURACIES if has_labels else ERRORS), *(name for name in OPTIONAL if name in measured)]
    curves = [*CURVES, *(name for name in OPTIONAL_CURVES if name in measured)]
    names = dict.fromkeys(name for row in rows for name in row.data.params)
    varying = [name for name in names if len({row.data.params.get(name) for row in rows}) > 1]
    columns = [f"metrics.`{name}`" for name in shown] + [f"params.`{name}`" for name in varying[:MOST_PARAMETERS]]
    return {
        "orderByKey": columns[0],
        "orderByAsc": not has_labels,
        "selectedColumns": columns,
        "columnOrder": [SELECTION, RUN_NAME, *columns, *ALWAYS_LAST],
        "columnWidths": {RUN_NAME: NAME_WIDTH, **dict.fromkeys((*columns, *ALWAYS_LAST), COLUMN_WIDTH)},
        # The interface puts every other metric under the last of these headings.
        "compareRunSections": [_section("Curves", 2), _section("Differences", 1), _section("Model metrics", 3)],
        "compareRunCharts": [
            *(_card(name, "Curves") | LINE | {"metricKey": name, "displayName": name} for name in curves),
            _card("differences", "Differences") | DIFFERENCES,
            *(_card(name, "Model metrics") | BAR | {"metricKey": name, "displayName": name} for name in shown),
        ],
    }


def _section(name: str, columns: int) -> dict[str, Any]:
    return {"uuid": name, "name": name, "columns": columns, "display": True, "isReordered": False, "deleted": False}


def _card(name: str, section: str) -> dict[str, Any]:
    return {"uuid": name, "metricSectionId": section, "runsCountToCompare": 10, "deleted": False, "isGenerated": True}
