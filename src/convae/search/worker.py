"""`convae search`: one worker of a search. More workers, on any machine, share the trials."""

import csv
import json
import sys
import time
import warnings
from collections import Counter
from contextlib import suppress
from pathlib import Path

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.storages import RetryHeartbeatStaleTrialCallback, fail_stale_trials
from optuna.trial import TrialState

from convae.errors import ConvaeError
from convae.experiment import load_experiment
from convae.history.git import git
from convae.search.settings import check_changes, load_search
from convae.search.study import GRACE_SECONDS, HEARTBEAT_SECONDS, open_study, suggest
from convae.search.trial import FailedError, Trial, base_of_workspace
from convae.tracking.progress import running_losses
from convae.tracking.records import Records
from convae.tracking.store import known_store, store_errors

MOST_FAILURES = 3  # in a row: then the parameters are hardly to blame
EXPERIMENT = "experiment"  # attribute of a trial


class LeftError(BaseException):
    """Carries out of Optuna what ended a worker during a trial.

    Optuna would mark the trial as failed on an `Exception` or Ctrl-C. After this one it stays RUNNING until its
    heartbeat is missed, and another worker takes it over.
    """

    def __init__(self, reason: BaseException) -> None:
        self.reason = reason


def search(path: Path) -> None:
    """Run trials until there are as many as search.yaml asks for, then print the best.

    Raises:
        ConvaeError: search.yaml or params.yaml has a mistake, a store can't be used, or several trials in a row fail.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        worker = Worker(path)
        worker.run()
    print(worker.verdict())


class Worker:
    """Runs trials of the search at `path`, one at a time."""

    def __init__(self, path: Path) -> None:
        params = load_experiment()
        self._path = path
        self._settings = load_search(path)
        self._base = base_of_workspace(params, path)
        self._figure = params.classifier.select_by
        self._study = open_study(path, self._settings, params, self._base.commit)
        if self._settings.pruning:
            with store_errors():
                self._records = Records(known_store(params.tracking), params.tracking.experiment)

    def run(self) -> None:
        """Run trials, and take over those of dead workers, until as many as asked for have ended."""
        failures, told = 0, False
        while True:
            fail_stale_trials(self._study)
            states = Counter(trial.state for trial in self._study.get_trials(deepcopy=False))
            ended = states[TrialState.COMPLETE] + states[TrialState.PRUNED]
            if ended >= self._settings.trials:
                return
            if ended + states[TrialState.RUNNING] >= self._settings.trials:
                if not told:
                    print("waiting for other workers to finish their trials", flush=True)
                told = True
                time.sleep(HEARTBEAT_SECONDS)
                continue
            try:
                self._study.optimize(self._objective, n_trials=1)
                failures = 0
            except LeftError as left:
                raise left.reason from None
            except FailedError as error:
                failures += 1
                if failures == MOST_FAILURES:
                    raise
                print(f"convae: {error}", file=sys.stderr, flush=True)

    def verdict(self) -> str:
        """Describe the best trial, with the command that restores it."""
        if not self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
            return "no trial has a result"
        best = self._study.best_trial
        changes = ", ".join(f"{key}={value}" for key, value in best.params.items())
        name = best.user_attrs[EXPERIMENT]
        return f"best: {name}, validation {self._figure} {best.value:.4f}, {changes}\ndvc exp apply {name}"

    def _objective(self, trial: optuna.Trial) -> float:
        try:
            return self._validation_figure(trial)
        except (optuna.TrialPruned, FailedError):
            raise
        except (Exception, KeyboardInterrupt) as error:
            raise LeftError(error) from None

    def _validation_figure(self, trial: optuna.Trial) -> float:
        recorded = self._study.get_trials(deepcopy=False)[trial.number]
        first = RetryHeartbeatStaleTrialCallback.retried_trial_number(recorded)
        name = f"{self._settings.study}-{trial.number if first is None else first}"
        trial.set_user_attr(EXPERIMENT, name)
        changes = {key: suggest(trial, key, values) for key, values in self._settings.space.items()}
        try:
            check_changes(self._path, self._base.params, changes)
        except ConvaeError as error:  # each value is valid, but not together
            print(f"{name}: skipped, {error}", flush=True)
            raise optuna.TrialPruned from None
        experiment = Trial(name, self._base, changes)
        self._reported: set[int] = set()
        try:
            commit = experiment.run(lambda: self._watch(trial, name))
        except (optuna.TrialPruned, FailedError):
            experiment.discard()
            raise
        experiment.discard()
        for row in csv.DictReader(git("show", f"{commit}:./reports/training.csv").splitlines()):
            if row["validation_loss"]:
                self._report(trial, int(row["epoch"]), float(row["validation_loss"]))
        validation = json.loads(git("show", f"{commit}:./reports/metrics.json"))["validation"]
        if self._figure not in validation:
            raise ConvaeError(f"the images have no labels, so there is no validation {self._figure} to maximise")
        value = float(validation[self._figure])
        print(f"{name}: validation {self._figure} {value:.4f}", flush=True)
        return value

    def _watch(self, trial: optuna.Trial, name: str) -> None:
        """Watch a running trial: prune it, or leave it if it is no longer this worker's."""
        if self._study.get_trials(deepcopy=False)[trial.number].state != TrialState.RUNNING:
            lost = f"{name} had no heartbeat for {GRACE_SECONDS} s and was left to other workers; start again"
            raise LeftError(ConvaeError(lost))
        losses: dict[int, float] = {}
        if self._settings.pruning:
            with suppress(ConvaeError), store_errors():  # a trial whose losses can't be read is not pruned
                losses = running_losses(self._records, name)
        for epoch, loss in losses.items():
            if self._report(trial, epoch, loss) and trial.should_prune():
                print(f"{name}: pruned at epoch {epoch} with a validation loss of {loss:.4g}", flush=True)
                raise optuna.TrialPruned

    def _report(self, trial: optuna.Trial, epoch: int, loss: float) -> bool:
        """Report an epoch to Optuna, once; return whether it was new."""
        if epoch in self._reported:
            return False
        self._reported.add(epoch)
        trial.report(-loss, epoch)  # negative, because the study maximises
        return True
