"""`convae search`: one worker of a search. Each that is started more, on any machine, shares its trials."""

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

MOST_FAILURES = 3  # in succession: then it is hardly the parameters
EXPERIMENT = "experiment"  # attribute of a trial


class LeftError(BaseException):
    """What ended a worker within a trial. For Optuna, which sees no failure, the trial goes on until it is missed."""

    def __init__(self, reason: BaseException) -> None:
        self.reason = reason


def search(path: Path) -> None:
    """Run trials until there are as many as asked for, then say which is the best.

    Raises:
        ConvaeError: a mistake in search.yaml or params.yaml, a store that can't be used, or trial after trial fails.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        worker = Worker(path)
        try:
            worker.run()
        except KeyboardInterrupt:
            sys.exit(130)
    print(worker.verdict())


class Worker:
    """Takes trials of the search at `path`, one after the other."""

    def __init__(self, path: Path) -> None:
        params = load_experiment()
        self._path = path
        self._settings = load_search(path)
        self._base = base_of_workspace(params, path)
        self._figure = params.classifier.select_by
        self._study = open_study(path, self._settings, params)
        if self._settings.pruning:
            with store_errors():
                self._records = Records(known_store(params.tracking), params.tracking.experiment)

    def run(self) -> None:
        """Return once so many trials have ended as were asked for; until then those of dead workers are taken over."""
        failures, told = 0, False
        while True:
            fail_stale_trials(self._study)
            states = Counter(trial.state for trial in self._study.get_trials(deepcopy=False))
            ended = states[TrialState.COMPLETE] + states[TrialState.PRUNED]
            if ended >= self._settings.trials:
                return
            if ended + states[TrialState.RUNNING] >= self._settings.trials:
                if not told:
                    print("waiting for the trials of other workers, to take over those of dead ones", flush=True)
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
        """Which trial is the best, and how it is brought back."""
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
        except ConvaeError as error:  # they do not go together
            print(f"{name}: left out, {error}", flush=True)
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
            self._report(trial, int(row["epoch"]), float(row["validation_loss"] or "nan"))
        validation = json.loads(git("show", f"{commit}:./reports/metrics.json"))["validation"]
        if self._figure not in validation:
            raise ConvaeError("the images have no labels, so there is no validation accuracy to search for")
        value = float(validation[self._figure])
        print(f"{name}: validation {self._figure} {value:.4f}", flush=True)
        return value

    def _watch(self, trial: optuna.Trial, name: str) -> None:
        """Look after a trial that runs: end with it if it is no longer this worker's, and prune it."""
        if self._study.get_trials(deepcopy=False)[trial.number].state != TrialState.RUNNING:
            sys.exit(f"convae: no sign of life for {GRACE_SECONDS} s, so {name} is left to another worker; start again")
        losses: dict[int, float] = {}
        if self._settings.pruning:
            with suppress(ConvaeError), store_errors():  # without its losses a trial runs to its end
                losses = running_losses(self._records, name)
        for epoch, loss in losses.items():
            if self._report(trial, epoch, loss) and trial.should_prune():
                print(f"{name}: pruned, its validation loss was {loss:.4g} in epoch {epoch}", flush=True)
                raise optuna.TrialPruned

    def _report(self, trial: optuna.Trial, epoch: int, loss: float) -> bool:
        """Tell Optuna of an epoch; gives whether it is news."""
        if epoch in self._reported:
            return False
        self._reported.add(epoch)
        trial.report(-loss, epoch)  # Optuna takes what is more to be better, here as in the accuracy
        return True
