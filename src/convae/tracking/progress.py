"""The progress of a training run in another process."""

from convae.tracking.context import EXPERIMENT, this_host
from convae.tracking.records import Records


def running_losses(records: Records, experiment: str) -> dict[int, float]:
    """Return validation losses by epoch of a DVC experiment that is training on this host; empty if it is not.

    Raises:
        Exception: any error of MLflow or its database.
    """
    conditions = {f"tags.`{EXPERIMENT}`": experiment, "tags.`dvc.stage`": "train", "tags.`process.host`": this_host()}
    running = " and ".join(f"{name} = '{value}'" for name, value in conditions.items())
    runs = records.client.search_runs([records.stages], f"attributes.status = 'RUNNING' and {running}", max_results=1)
    if not runs:
        return {}
    epochs, losses = (
        {entry.step: entry.value for entry in records.client.get_metric_history(runs[0].info.run_id, name)}
        for name in ("epoch", "validation_loss")
    )
    return {int(epochs[step]): losses[step] for step in sorted(losses.keys() & epochs.keys())}
