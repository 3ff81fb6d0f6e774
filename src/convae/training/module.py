"""The Lightning module that minimises an objective: optimiser, schedule and learning curves."""

import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as lightning
import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR

from convae.errors import ConvaeError
from convae.models.draws import random_seed
from convae.params import TrainParams
from convae.training.batches import Batch, Batches
from convae.training.objectives import Objective
from convae.training.probe import Probe

Row = dict[str, float]
# Of a row: number, phase and epoch; epochs trained so far; mean training loss since the row before; loss of some
# validation images; at the end of an epoch, loss of all of them; and what the probe measured, if it did.
COLUMNS = (
    "point",
    "phase",
    "epoch",
    "trained",
    "train_loss",
    "sample_loss",
    "validation_loss",
    "learning_rate",
    "probe_accuracy",
)
VALIDATION_EPOCH = 2**31  # beyond any real epoch; its draws corrupt the validation images, the same way each time


class Loader:
    """Batches in place of a DataLoader, from the current position in the training run.

    Args:
        batches: the batches of every epoch.
        position: called when an epoch starts or resumes; returns the epoch and its next batch.
    """

    def __init__(self, batches: Batches, position: Callable[[], tuple[int, int]]) -> None:
        self.batches = batches
        self.position = position

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        # A generator reads the position at the first batch. Lightning makes the iterator before it has resumed.
        yield from self.batches.of_epoch(*self.position())


class TrainingModule(lightning.LightningModule):
    """Minimises an objective in one phase of training.

    The random draws of a step depend only on (seed, epoch, batch), so resuming needs no generator state.

    Args:
        objective: the objective to minimise.
        training, validation: batches of images; the validation loss chooses the epoch.
        sample: a few of the validation images, whose loss is measured within epochs too.
        probe: measures the features within training, or None.
        points: rows of the history per epoch, at most one per batch.
        params: the `train` section.
        checkpoint: file for checkpoints within an epoch.
        seed: seeds all random draws.
        phase: number of phases before this one.
        earlier: the rows of the history of those phases.
        on_row: called with each row of the history, which has some of `COLUMNS`; on resuming, first with the rows so
            far.
    """

    def __init__(
        self,
        objective: Objective,
        training: Batches,
        validation: Batches,
        sample: Batches,
        probe: Probe | None,
        points: int,
        params: TrainParams,
        checkpoint: Path,
        seed: int,
        phase: int,
        earlier: list[Row],
        on_row: Callable[[Row], None],
    ) -> None:
        super().__init__()
        self.objective = objective
        self.training_batches = training
        self.validation_batches = validation
        self.sample = sample
        self.probe = probe
        self.points = points
        self.processes = objective.batch.processes
        self.params = params
        self.checkpoint = checkpoint
        self.seed = seed
        self.phase = phase
        self.first_point = len(earlier)
        self.first_epoch = int(earlier[-1]["epoch"]) + 1 if earlier else 0
        self.on_row = on_row
        self.history: list[Row] = []
        self.loss_sum, self.images_since = torch.zeros(()), 0
        self.resumed = False
        self.on_start: Callable[[], object] = lambda: None

    def train_dataloader(self) -> Loader:
        """The batches to learn from."""
        return Loader(self.training_batches, self._start_epoch)

    def val_dataloader(self) -> Loader:
        """The batches whose loss chooses the epoch."""
        return Loader(self.validation_batches, lambda: (0, 0))

    @property
    def batches_done(self) -> int:
        """Batches of this epoch that were trained before an interruption; otherwise 0."""
        return int(self.trainer.fit_loop.epoch_loop.batch_progress.current.ready)

    def on_fit_start(self) -> None:
        """Call `on_start`: before, Lightning reads PyTorch's former flags, which must not contradict the new ones."""
        self.on_start()

    def on_train_start(self) -> None:
        """Start the checkpoint timer; stop at once if killed between early stopping and saving the result."""
        self.trainer.should_stop = self._out_of_patience()
        self.training_batches.move_to(self.device)
        self.validation_batches.move_to(self.device)
        self.sample.move_to(self.device)
        self.objective.start_training()
        self.loss_sum = self.loss_sum.to(self.device)
        self.saved, self.steps_since = time.monotonic(), 0

    def on_train_epoch_start(self) -> None:
        """Reset the loss; Lightning does not call this when it resumes an epoch."""
        self.objective.start_training()
        self._reset_loss()

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed the random draws of this step."""
        self._begin_batch(self.training_batches, batch_idx)
        self._seed_draws(self.current_epoch, 1 + batch_idx)

    def training_step(self, batch: Batch) -> Tensor:
        """Loss of one batch."""
        loss: Tensor = self.objective(batch)
        self.loss_sum += self._sum_of(loss.detach())
        self.images_since += self.batch_images
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Add a row to the history if it is time, and save a checkpoint every `train.checkpoint_minutes`.

        The end of an epoch does both anyway.
        """
        batches = len(self.training_batches)
        before, after = (done * self.points // batches for done in (batch_idx, batch_idx + 1))
        if after > before and not self.trainer.is_last_batch:
            self._add_row((batch_idx + 1) / batches)
        self.steps_since += 1
        several = self.processes.count > 1
        if several and self.steps_since.bit_count() > 1:
            return
        # All processes save together, so rank 0 decides. Asking it at every step would be slow; they ask at steps 1, 2,
        # 4, 8, … since the last checkpoint. Half the interval is enough: the next such step may take as long again.
        waited = (time.monotonic() - self.saved) * (2 if several else 1)
        due = self.trainer.strategy.broadcast(waited >= 60 * self.params.checkpoint_minutes)
        if due and not self.trainer.is_last_batch:
            self.trainer.save_checkpoint(self.checkpoint, weights_only=False)
            self.saved, self.steps_since = time.monotonic(), 0

    def on_validation_start(self) -> None:
        """Seed the corruption of the validation images, the same way after every epoch."""
        self._seed_draws(VALIDATION_EPOCH)
        self.validation_loss = torch.zeros((), device=self.device)

    def on_validation_batch_start(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Set the number of images that the processes share."""
        self._begin_batch(self.validation_batches, batch_idx)

    def validation_step(self, batch: Batch) -> None:
        """Add up the loss."""
        self.validation_loss += self._sum_of(self.objective(batch))

    def on_validation_epoch_end(self) -> None:
        """Log the mean loss over the validation images, which checkpoints and early stopping read."""
        total = self.trainer.strategy.reduce(self.validation_loss, reduce_op="sum")
        mean = total / self.validation_batches.count
        # All processes hold the same mean. The maximum over processes has the same bits; a mean of them might not.
        self.log("validation_loss", mean, prog_bar=True, reduce_fx="max", sync_dist=True)

    def on_train_epoch_end(self) -> None:
        """Add a row to the history; stop if the validation loss has not improved for too long.

        Raises:
            ConvaeError: the loss is not finite.
        """
        loss = float(self.trainer.callback_metrics["validation_loss"])
        self._add_row(1, validation_loss=loss)
        self.trainer.should_stop = self._out_of_patience()
        self.saved, self.steps_since = time.monotonic(), 0

    def on_fit_end(self) -> None:
        """Stop sharing batches among processes."""
        self.objective.batch.begin(0)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the history and the loss since its last row, summed over all processes."""
        checkpoint["history"] = self.history
        checkpoint["images_since"] = self.images_since
        checkpoint["loss_sum"] = self.trainer.strategy.reduce(self.loss_sum.clone(), reduce_op="sum")

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore both; rank 0 gets the whole loss."""
        self.history, self.loss_sum = checkpoint["history"], checkpoint["loss_sum"]
        self.images_since = checkpoint["images_since"]
        self.resumed = True
        if not self.trainer.is_global_zero:
            self.loss_sum = torch.zeros_like(self.loss_sum)
        for row in self.history:
            self.on_row(row)

    def configure_optimizers(self) -> Any:
        """The optimiser and learning-rate schedule that `train` asks for."""
        params, rate = self.params, self.params.learning_rate
        head = set(self.objective.head_parameters())
        groups: list[dict[str, Any]] = []
        for learned, group_rate in (
            ([one for one in self.objective.trained() if one not in head], rate),
            (list(self.objective.head_parameters()), params.head_learning_rate or rate),
        ):  # biases and batch normalisation get no weight decay
            decaying, others = ([one for one in learned if (one.ndim > 1) == filters] for filters in (True, False))
            groups.append({"params": decaying, "lr": group_rate, "weight_decay": params.weight_decay})
            groups.append({"params": others, "lr": group_rate, "weight_decay": 0.0})
        kinds: dict[str, Callable[..., Optimizer]] = {"adam": Adam, "adamw": AdamW, "sgd": partial(SGD, momentum=0.9)}
        optimizer = kinds[params.optimizer](groups, lr=rate)
        if params.schedule == "constant":
            return optimizer
        steps = int(self.trainer.estimated_stepping_batches)
        if params.schedule == "cosine":
            schedule: Any = CosineAnnealingLR(optimizer, steps)
        else:
            schedule = OneCycleLR(optimizer, [group["lr"] for group in groups], total_steps=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _start_epoch(self) -> tuple[int, int]:
        """Say where training resumes, if it does, and return the epoch and its next batch."""
        if self.resumed and self.trainer.is_global_zero:
            epoch = self.first_epoch + self.current_epoch
            print(f"resuming epoch {epoch} after {self.batches_done} batches", flush=True)
        self.resumed = False
        return self.current_epoch, self.batches_done

    def _reset_loss(self) -> None:
        # Apple's GPUs have no double precision.
        kind = torch.float32 if self.device.type == "mps" else torch.float64
        self.loss_sum, self.images_since = torch.zeros((), dtype=kind, device=self.device), 0

    def _add_row(self, fraction: float, **measured: float) -> None:
        """Measure and add a row to the history after this fraction of an epoch; training goes on as if it had not."""
        epoch, point = self.first_epoch + self.current_epoch, self.first_point + len(self.history)
        train_loss = float(self.trainer.strategy.reduce(self.loss_sum, reduce_op="sum")) / self.images_since
        if not math.isfinite(train_loss):
            raise ConvaeError(
                f"the loss became {train_loss} in epoch {epoch}: lower train.learning_rate or set train.gradient_clip"
            )
        self.objective.eval()
        measured |= {"trained": epoch + fraction, "train_loss": train_loss, "sample_loss": self._sample_loss()}
        measured["learning_rate"] = self.trainer.optimizers[0].param_groups[0]["lr"]
        if self.probe and self.params.probe_every and (fraction == 1 or (point + 1) % self.params.probe_every == 0):
            measured["probe_accuracy"] = self.probe.accuracy(
                self.objective.autoencoder, self.objective.depth, self.params.batch_size
            )
        self.objective.start_training()
        # Rounded here, so that `on_row` and readers of the history get the same numbers.
        row: Row = {"point": point, "phase": self.phase, "epoch": epoch}
        row |= {name: float(f"{measured[name]:.6g}") for name in COLUMNS if name in measured}
        self.history.append(row)
        self._reset_loss()
        self.on_row(row)

    def _sample_loss(self) -> float:
        """Mean loss of the sample, with the same corruption each time."""
        self._seed_draws(VALIDATION_EPOCH)
        strategy, loss = self.trainer.strategy, torch.zeros((), device=self.device)
        with torch.no_grad(), strategy.precision_plugin.val_step_context():
            for index, batch in enumerate(self.sample.of_epoch(0)):
                self._begin_batch(self.sample, index)
                loss += self._sum_of(self.objective(strategy.batch_to_device(batch, self.device)))
        return float(strategy.reduce(loss, reduce_op="sum")) / self.sample.count

    def _seed_draws(self, *position: int) -> None:
        seed = random_seed(self.seed, *position)
        # torch.manual_seed seeds every kind of device and records a stack trace for those not in use: 1 ms per step.
        torch.default_generator.manual_seed(seed)
        if self.device.type != "cpu":
            torch.get_device_module(self.device).manual_seed(seed)

    def _begin_batch(self, batches: Batches, index: int) -> None:
        self.batch_images = batches.size(index)
        self.objective.batch.begin(self.batch_images)

    def _sum_of(self, loss: Tensor) -> Tensor:
        """Summed loss of this process's images, without the weight that `SharedBatch` gives to `loss`."""
        total: Tensor = loss * (self.batch_images / self.processes.count)
        return total

    def _out_of_patience(self) -> bool:
        losses = [row["validation_loss"] for row in self.history if "validation_loss" in row]
        if self.params.patience is None or not losses:
            return False
        return len(losses) - 1 - losses.index(min(losses)) >= self.params.patience
