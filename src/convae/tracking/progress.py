"""How far a training is that goes on elsewhere."""

from convae.tracking.context import this_host
from convae.tracking.records import Records


def running_losses(records: Records, experiment: str) -> dict[int, float]:
    """Validation losses by epoch of the training that runs on this host for one of DVC's experiments; none without it.

    Raises whatever MLflow and what lies under it come up with.
    """
    conditions = {"tags.`dvc.experiment`": experiment, "tags.`dvc.stage`": "train", "tags.`process.host`": this_host()}
    running = " and ".join(f"{name} = '{value}'" for name, value in conditions.items())
    runs = records.client.search_runs([records.stages], f"attributes.status = 'RUNNING' and {running}", max_results=1)
    if not runs:
        return {}
    history = records.client.get_metric_history(runs[0].info.run_id, "validation_loss")
    return {entry.step: entry.value for entry in sorted(history, key=lambda entry: entry.step)}
