"""The trials of a search, which all workers share, in a database of Optuna's."""

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
from convae.names import flatten
from convae.params import Params
from convae.search.settings import SearchSettings, Values
from convae.search.trial import FOLDER
from convae.tracking.store import SQLITE, store_errors

DATABASE = f"{SQLITE}search.db"
HEARTBEAT_SECONDS = 20
GRACE_SECONDS = 3 * HEARTBEAT_SECONDS  # without a sign of life; then a trial is another worker's
ATTEMPTS = 5  # to open a database in which others are making the tables
VARIED = "varied"  # attribute of a study


def open_study(path: Path, settings: SearchSettings, params: Params) -> optuna.Study:
    """The study, made where it is missing.

    Raises:
        ConvaeError: the storage can't be used, or trials of this study are variations of something else.
    """
    pruner: optuna.pruners.BasePruner = optuna.pruners.NopPruner()
    if settings.pruning:
        pruner = optuna.pruners.MedianPruner(settings.pruning.startup_trials, settings.pruning.warmup_epochs)
    varied = {"params.yaml": params.model_dump(mode="json"), "space": settings.model_dump(mode="json")["space"]}
    del varied["params.yaml"]["tracking"]
    with store_errors(f"{path}: storage"):
        storage = _open_storage(settings.storage or DATABASE)
        study = optuna.create_study(
            study_name=settings.study,
            storage=storage,
            sampler=optuna.samplers.TPESampler(constant_liar=True),  # other workers' trials count while they run
            pruner=pruner,
            direction="maximize",
            load_if_exists=True,
        )
        if VARIED not in study.user_attrs:
            study.set_user_attr(VARIED, varied)
    before, now = flatten(study.user_attrs[VARIED]), flatten(varied)
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key):
            raise ConvaeError(
                f"{path}: study {settings.study} began with {key} = {before.get(key)}, now {now.get(key)}: its trials "
                "could not be compared; name another study"
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
    # Of several workers that make the tables at once all but one fail: here they wait, elsewhere they try again.
    FOLDER.mkdir(parents=True, exist_ok=True)
    with FileLock(FOLDER / "study.lock"):
        for _ in range(ATTEMPTS - 1):
            with suppress(IntegrityError, ProgrammingError):
                return make()
            time.sleep(2)
        return make()


def suggest(trial: optuna.Trial, key: str, values: Values) -> Any:
    """A value for a key, chosen by Optuna."""
    if values.choices is not None:
        return json.loads(trial.suggest_categorical(key, [json.dumps(choice) for choice in values.choices]))
    assert values.low is not None
    assert values.high is not None
    if values.is_whole:
        return trial.suggest_int(key, int(values.low), int(values.high), step=int(values.step or 1), log=values.log)
    return trial.suggest_float(key, values.low, values.high, step=values.step, log=values.log)
