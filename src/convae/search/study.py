"""The trials of a search in an Optuna database that all workers share."""

import json
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from sqlalchemy.exc import IntegrityError, ProgrammingError

from convae.errors import ConvaeError
from convae.history.git import git
from convae.history.lock import differences
from convae.names import flatten
from convae.params import Params
from convae.search.settings import SearchSettings, Values
from convae.search.trial import FOLDER
from convae.tracking.store import SQLITE, store_errors

DATABASE = f"{SQLITE}search.db"
HEARTBEAT_SECONDS = 20
GRACE_SECONDS = 3 * HEARTBEAT_SECONDS  # without a heartbeat; then another worker takes over the trial
ATTEMPTS = 5  # to open a database while another worker creates its tables
VARIED = "varied"  # attribute of a study: the code, the parameters and the space that it began with


def open_study(path: Path, settings: SearchSettings, params: Params, commit: str) -> optuna.Study:
    """Open the study, or create it.

    Raises:
        ConvaeError: the storage can't be used, or the study began with other code, other parameters or another space.
    """
    pruner: optuna.pruners.BasePruner = optuna.pruners.NopPruner()
    if settings.pruning:
        pruner = optuna.pruners.MedianPruner(settings.pruning.startup_trials, settings.pruning.warmup_epochs)
    varied = {
        "code": {name: git("rev-parse", f"{commit}:./{name}") for name in ("src", "pipeline", "dvc.yaml")},
        "params.yaml": params.model_dump(mode="json"),
        "space": settings.model_dump(mode="json")["space"],
    }
    del varied["params.yaml"]["tracking"]
    with store_errors(f"{path}: storage"):
        storage = _open_storage(settings.storage or DATABASE)
        study = optuna.create_study(
            study_name=settings.study,
            storage=storage,
            sampler=optuna.samplers.TPESampler(constant_liar=True),  # avoids points that other workers are trying now
            pruner=pruner,
            direction="maximize",
            load_if_exists=True,
        )
        if VARIED not in study.user_attrs:
            study.set_user_attr(VARIED, varied)
    for key, before, now in differences(flatten(study.user_attrs[VARIED]), flatten(varied)):
        raise ConvaeError(
            f"{path}: study {settings.study} began with {key} = {before}, now {now}: old and new trials can't be "
            "compared; choose another study name"
        )
    return study


def _open_storage(url: str) -> RDBStorage:
    make = partial(
        RDBStorage,
        url,
        engine_kwargs={"connect_args": {"timeout": 60}} if url.startswith(SQLITE) else {},
        heartbeat_interval=HEARTBEAT_SECONDS,
        grace_period=GRACE_SECONDS,
        heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(),
    )
    # If several workers create the tables at once, all but one fail. On this machine they wait for the lock; workers on
    # other machines don't see it and try again.
    FOLDER.mkdir(parents=True, exist_ok=True)
    with FileLock(FOLDER / "study.lock"):
        for _ in range(ATTEMPTS - 1):
            with suppress(IntegrityError, ProgrammingError):
                return make()
            time.sleep(2)
        return make()


def suggest(trial: optuna.Trial, key: str, values: Values) -> Any:
    """Return Optuna's choice of a value for a key."""
    if values.choices is not None:
        # As JSON, because Optuna's choices can't be lists.
        return json.loads(trial.suggest_categorical(key, [json.dumps(choice) for choice in values.choices]))
    assert values.low is not None
    assert values.high is not None
    if values.is_whole:
        return trial.suggest_int(key, int(values.low), int(values.high), step=int(values.step or 1), log=values.log)
    return trial.suggest_float(key, values.low, values.high, step=values.step, log=values.log)
