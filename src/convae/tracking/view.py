"""What MLflow's user interface shows first: the best experiment on top, and only what tells experiments apart.

The interface reads such a view from a tag of the experiment; its form is that of MLflow's own saved views.
"""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from convae.tracking.records import Records
from convae.tracking.store import every_run

if TYPE_CHECKING:
    from mlflow.entities import Run as Recorded

NAME = "convae"
# The first of them says which is best: test images choose nothing.
ACCURACIES = (
    "validation.accuracy",
    "test.accuracy",
    "test.balanced_accuracy",
    "test.worst_recall",
    "test.majority_accuracy",
)
ERRORS = ("validation.reconstruction_mse", "test.reconstruction_mse")
CURVES = ("validation_loss", "train_loss")
MOST_PARAMETERS = 12  # a wider table is no comparison
# Columns that are always there, by the names that the interface gives them.
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
    """Make the view over the rows there are now; gives the part of its address that follows the server's.

    Raises:
        Exception: whatever MLflow and what lies under it come up with.
    """
    view = _view(list(every_run(records.client, records.rows)))
    # The times order a menu of views, of which there is one.
    saved = {"name": "Best first", "createdAt": 0, "updatedAt": 0, "state": json.dumps(view)}
    records.client.set_experiment_tag(records.rows, f"mlflow.sharedViewState.{NAME}", json.dumps(saved))
    return f"/#/experiments/{records.rows}/runs?viewStateShareKey={NAME}"


def _varying(rows: "Sequence[Recorded]") -> list[str]:
    """Names of the parameters in which the rows are not all the same."""
    names = dict.fromkeys(name for row in rows for name in row.data.params)
    return [name for name in names if len({row.data.params.get(name) for row in rows}) > 1]


def _view(rows: "Sequence[Recorded]") -> dict[str, Any]:
    has_labels = any(ACCURACIES[0] in row.data.metrics for row in rows)
    shown = ACCURACIES if has_labels else ERRORS
    columns = [f"metrics.`{name}`" for name in shown] + [
        f"params.`{name}`" for name in _varying(rows)[:MOST_PARAMETERS]
    ]
    return {
        "orderByKey": columns[0],
        "orderByAsc": not has_labels,
        "selectedColumns": columns,
        "columnOrder": [SELECTION, RUN_NAME, *columns, *ALWAYS_LAST],
        "columnWidths": {RUN_NAME: NAME_WIDTH, **dict.fromkeys((*columns, *ALWAYS_LAST), COLUMN_WIDTH)},
        # The interface puts every other metric under the last of these headings.
        "compareRunSections": [_section("Curves", 2), _section("Differences", 1), _section("Model metrics", 3)],
        "compareRunCharts": [
            *(_card(name, "Curves") | LINE | {"metricKey": name, "displayName": name} for name in CURVES),
            _card("differences", "Differences") | DIFFERENCES,
            *(_card(name, "Model metrics") | BAR | {"metricKey": name, "displayName": name} for name in shown),
        ],
    }


def _section(name: str, columns: int) -> dict[str, Any]:
    return {"uuid": name, "name": name, "columns": columns, "display": True, "isReordered": False, "deleted": False}


def _card(name: str, section: str) -> dict[str, Any]:
    return {"uuid": name, "metricSectionId": section, "runsCountToCompare": 10, "deleted": False, "isGenerated": True}
