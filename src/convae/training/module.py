"""An objective as a Lightning module: optimiser, schedule and the history of its epochs."""

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytorch_lightning as lightning
import torch
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR

from convae.errors import ConvaeError
from convae.params import TrainParams
from convae.training.batches import Batch, Batches, random_seed
from convae.training.objectives import Objective

Row = dict[str, float]
VALIDATION_EPOCH = 2**31  # no training is as long: validation images are corrupted alike after every epoch


class Loader:
    """Batches in place of a DataLoader, from where the training stands.

    Args:
        batches: of any epoch.
        position: called when an epoch begins or goes on; gives the epoch and its next batch.
    """

    def __init__(self, batches: Batches, position: Callable[[], tuple[int, int]]) -> None:
        self.batches = batches
        self.position = position

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        yield from self.batches.of_epoch(*self.position())  # Lightning asks for an iterator before it has resumed


class TrainingModule(lightning.LightningModule):
    """Minimises an objective: one phase of a training.

    Everything random at a step is drawn from (seed, epoch, batch): resuming there needs no generator's state.

    Args:
        objective: what is minimised.
        training, validation: the images; those for validation choose the epoch.
        params: the section `train`.
        checkpoint: file that is written within long epochs.
        seed: of everything random in an epoch.
        phase: the number of phases before this one.
        first_epoch: the number of epochs trained in these.
        on_epoch: called with each row of the history: those of a resumed training first, then after each epoch.
    """

    def __init__(
        self,
        objective: Objective,
        training: Batches,
        validation: Batches,
        params: TrainParams,
        checkpoint: Path,
        seed: int,
        phase: int,
        first_epoch: int,
        on_epoch: Callable[[Row], None],
    ) -> None:
        super().__init__()
        self.objective = objective
        self.training_batches = training
        self.validation_batches = validation
        self.processes = objective.batch.processes
        self.params = params
        self.checkpoint = checkpoint
        self.seed = seed
        self.phase = phase
        self.first_epoch = first_epoch
        self.on_epoch = on_epoch
        self.history: list[Row] = []
        self.losses: list[Tensor] = []

    def train_dataloader(self) -> Loader:
        """The images to learn from."""
        return Loader(self.training_batches, lambda: (self.current_epoch, self.batches_done))

    def val_dataloader(self) -> Loader:
        """The images that choose the epoch."""
        return Loader(self.validation_batches, lambda: (0, 0))

    @property
    def batches_done(self) -> int:
        """Of the epoch: none, unless it was interrupted."""
        return int(self.trainer.fit_loop.epoch_loop.batch_progress.current.ready)

    def on_train_start(self) -> None:
        """End a training at once that was killed after early stopping, but before its result was saved."""
        self.trainer.should_stop = self._out_of_patience()
        self.training_batches.move_to(self.device)
        self.validation_batches.move_to(self.device)
        self.objective.start_training()
        self.losses = [loss.to(self.device) for loss in self.losses]
        self.saved, self.steps_since = time.monotonic(), 0

    def on_train_epoch_start(self) -> None:
        """Start adding up losses; Lightning does not call this in an epoch that is resumed."""
        self.objective.start_training()
        self.losses = []

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Fix everything random in this step."""
        self._begin_batch(self.training_batches, batch_idx)
        self._seed_draws(self.current_epoch, 1 + batch_idx)

    def training_step(self, batch: Batch) -> Tensor:
        """Loss of one batch."""
        loss: Tensor = self.objective(batch)
        self.losses.append(self._sum_of(loss.detach()))
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Save a checkpoint every `train.checkpoint_minutes`; after an epoch there is one anyway."""
        self.steps_since += 1
        several = self.processes.count > 1
        if several and self.steps_since.bit_count() > 1:
            return
        # All processes take part in saving, so one decides. Waiting for it at each step would take long: they do so
        # at the steps 1, 2, 4, 8, ..., and half the time counts, since the next of these may come after as much again.
        waited = (time.monotonic() - self.saved) * (2 if several else 1)
        due = self.trainer.strategy.broadcast(waited >= 60 * self.params.checkpoint_minutes)
        if due and not self.trainer.is_last_batch:
            self.trainer.save_checkpoint(self.checkpoint)
            self.saved, self.steps_since = time.monotonic(), 0

    def on_validation_start(self) -> None:
        """Corrupt the validation images alike after every epoch."""
        self._seed_draws(VALIDATION_EPOCH)
        self.validation_loss = torch.zeros((), device=self.device)

    def on_validation_batch_start(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Tell how many images the processes share."""
        self._begin_batch(self.validation_batches, batch_idx)

    def validation_step(self, batch: Batch) -> None:
        """Add up the loss."""
        self.validation_loss += self._sum_of(self.objective(batch))

    def on_validation_epoch_end(self) -> None:
        """Log the mean over the validation images; checkpoints and early stopping read it."""
        total = self.trainer.strategy.reduce(self.validation_loss, reduce_op="sum")
        self.log(
            "validation_loss", total / self.validation_batches.count, prog_bar=True, reduce_fx="max", sync_dist=True
        )

    def on_train_epoch_end(self) -> None:
        """Add a row to the history.

        Raises:
            ConvaeError: the loss is not finite.
        """
        total = self.trainer.strategy.reduce(torch.stack(self.losses).sum(), reduce_op="sum")
        train_loss = float(total) / self.training_batches.count
        if not math.isfinite(train_loss):
            raise ConvaeError(
                f"the loss became {train_loss} in epoch {self.first_epoch + self.current_epoch}: "
                "lower train.learning_rate or set train.gradient_clip"
            )
        numbers = {
            "train_loss": train_loss,
            "validation_loss": float(self.trainer.callback_metrics["validation_loss"]),
            "learning_rate": self.trainer.optimizers[0].param_groups[0]["lr"],
        }
        # Rounded here, so that whoever is told of an epoch and whoever reads the table have the same numbers.
        row: Row = {"phase": self.phase, "epoch": self.first_epoch + self.current_epoch}
        row |= {name: float(f"{value:.6g}") for name, value in numbers.items()}
        self.history.append(row)
        self.losses = []
        self.on_epoch(row)
        self.trainer.should_stop = self._out_of_patience()
        self.saved, self.steps_since = time.monotonic(), 0

    def on_fit_end(self) -> None:
        """Stop sharing batches."""
        self.objective.batch.begin(0)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the history and the losses of an unfinished epoch, for a training that is resumed."""
        checkpoint["history"] = self.history
        if self.losses:
            checkpoint["losses"] = self.trainer.strategy.reduce(torch.stack(self.losses), reduce_op="sum")

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up both; with several processes the first has the losses of all."""
        self.history = checkpoint["history"]
        losses = checkpoint.get("losses", ())
        self.losses = [loss if self.trainer.is_global_zero else torch.zeros_like(loss) for loss in losses]
        if self.trainer.is_global_zero:
            print(f"resuming epoch {self.first_epoch + len(self.history)} after {len(losses)} batches", flush=True)
        for row in self.history:
            self.on_epoch(row)

    def configure_optimizers(self) -> Any:
        """Optimiser and learning-rate schedule by parameter."""
        params, rate = self.params, self.params.learning_rate
        head = set(self.objective.head_parameters())
        groups: list[dict[str, Any]] = []
        for learned, group_rate in (
            ([one for one in self.objective.trained() if one not in head], rate),
            (list(self.objective.head_parameters()), params.head_learning_rate or rate),
        ):  # biases and batch normalisation do not decay
            decaying, others = ([one for one in learned if (one.ndim > 1) == filters] for filters in (True, False))
            groups.append({"params": decaying, "lr": group_rate, "weight_decay": params.weight_decay})
            groups.append({"params": others, "lr": group_rate, "weight_decay": 0.0})
        optimizer: torch.optim.Optimizer
        if params.optimizer == "sgd":
            optimizer = torch.optim.SGD(groups, lr=rate, momentum=0.9)
        elif params.optimizer == "adamw":
            optimizer = torch.optim.AdamW(groups, lr=rate)
        else:
            optimizer = torch.optim.Adam(groups, lr=rate)
        if params.schedule == "constant":
            return optimizer
        steps = int(self.trainer.estimated_stepping_batches)
        if params.schedule == "cosine":
            schedule: Any = CosineAnnealingLR(optimizer, steps)
        else:
            schedule = OneCycleLR(optimizer, [group["lr"] for group in groups], total_steps=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _seed_draws(self, *position: int) -> None:
        seed = random_seed(self.seed, *position)
        # torch.manual_seed tells every kind of device, and notes down a stack for those not in use: 1 ms at each step.
        torch.default_generator.manual_seed(seed)
        if self.device.type != "cpu":
            torch.get_device_module(self.device).manual_seed(seed)

    def _begin_batch(self, batches: Batches, index: int) -> None:
        self.batch_images = batches.size(index)
        self.objective.batch.begin(self.batch_images)

    def _sum_of(self, loss: Tensor) -> Tensor:
        """Of the losses of this process's images: `loss` is weighted, see `SharedBatch`."""
        total: Tensor = loss * (self.batch_images / self.processes.count)
        return total

    def _out_of_patience(self) -> bool:
        losses = [row["validation_loss"] for row in self.history]
        if self.params.patience is None or not losses:
            return False
        return len(losses) - 1 - losses.index(min(losses)) >= self.params.patience
