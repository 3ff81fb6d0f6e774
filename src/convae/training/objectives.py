"""Training objectives: a loss over a batch, and the parameters that learn from it.

Each objective is a module around the same autoencoder, so its checkpoint holds everything that is trained.
"""

from collections.abc import Iterator
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convae.models.autoencoder import Autoencoder
from convae.models.corruption import Corruption, reconstruction_error
from convae.models.draws import augment
from convae.models.geometry import Size, layer_sizes
from convae.models.layers import pool_over_grid
from convae.models.shared_batch import BatchNorm1d
from convae.training.batches import Batch

Augmentation = dict[str, Any] | None
HEAD_GRID = 7  # rows and columns of cells over which `Classification` averages the maps


class Objective(nn.Module):
    """Base class of all objectives: preprocessing, augmentation, corruption.

    Args:
        autoencoder: the network, its preprocessing fitted.
        corruption: corrupts the input, on validation images too, or None.
        augmentation: `flip` and `shift` of `augment`, or None; applied to training images only.
        frozen: number of layers that do not learn, counted from the first.

    Example:
        >>> from convae.params import LayerParams
        >>> layers = [LayerParams(filters=4).model_dump(), LayerParams(filters=8).model_dump()]
        >>> objective = Objective(Autoencoder(1, {}, layers, tied_weights=True), None, None, frozen=1)
        >>> len(list(objective.trained()))  # the second layer's filters and biases, both decoders' biases
        4
    """

    def __init__(
        self, autoencoder: Autoencoder, corruption: Corruption | None, augmentation: Augmentation, frozen: int = 0
    ) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        self.batch = autoencoder.batch
        self.corruption = corruption
        self.augmentation = augmentation
        self.frozen = frozen

    def forward(self, batch: Batch) -> Tensor:
        """Mean loss over a batch."""
        images, labels = batch
        if self.training and self.augmentation:
            images = augment(images, **self.augmentation, batch=self.batch)
        with self._full_precision(images):
            preprocessed = self.autoencoder.preprocessing(images)
        return self.loss(preprocessed, labels)

    @property
    def depth(self) -> int:
        """Number of layers that it computes, counted from the first."""
        return len(self.autoencoder.layers)

    def loss(self, preprocessed: Tensor, labels: Tensor | None) -> Tensor:
        """Mean loss over preprocessed images `[n, C, H, W]`."""
        raise NotImplementedError

    def trained(self) -> Iterator[nn.Parameter]:
        """The parameters that learn; the tied filters of a frozen layer are frozen in its decoder too."""
        network = self.autoencoder
        frozen = set(network.layers[: self.frozen].parameters()) | set(network.sparsity[: self.frozen].parameters())
        if network.stacked_on == "reconstructions":  # the other layers' input comes from these decoders
            frozen |= set(network.decoder[: self.frozen].parameters())
        return (parameter for parameter in self.parameters() if parameter not in frozen)

    def head_parameters(self) -> Iterator[nn.Parameter]:
        """The trainable parameters of the classification head."""
        return iter(())

    def start_training(self) -> None:
        """Enter training mode; frozen layers stay in evaluation mode, without dropout or new batch statistics."""
        self.train()
        for own in (self.autoencoder.layers, self.autoencoder.sparsity):
            own[: self.frozen].eval()

    def _full_precision(self, images: Tensor) -> torch.autocast:
        """Turns mixed precision off: targets rounded to 8 bits would be learned with their rounding errors."""
        return torch.autocast(images.device.type, enabled=False)

    def _corrupt(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.corruption(images) if self.corruption else (images, None)


class Reconstruction(Objective):
    """Reconstructs the image from the last layer's maps, through all layers.

    Example:
        >>> from convae.params import LayerParams
        >>> network = Autoencoder(1, {}, [LayerParams(filters=4).model_dump()], tied_weights=False)
        >>> network.initialize(torch.Generator())
        >>> objective = Reconstruction(network, corruption=None, augmentation=None)
        >>> objective((torch.zeros(2, 1, 8, 8, dtype=torch.uint8), None)).item()  # black stays black
        0.0
    """

    def loss(self, preprocessed: Tensor, labels: Tensor | None) -> Tensor:
        """Mean squared error; where the corruption masks pixels, over these only."""
        corrupted, counted = self._corrupt(preprocessed)
        return reconstruction_error(self.autoencoder(corrupted), preprocessed, counted, self.batch)

    def trained(self) -> Iterator[nn.Parameter]:
        """See `Objective.trained`; only maps that are decoded are made sparse."""
        network = self.autoencoder
        unused = set(network.sparsity[:-1].parameters()) if network.stacked_on == "maps" else set()
        return (parameter for parameter in super().trained() if parameter not in unused)


class LayerReconstruction(Objective):
    """The first layer that is not frozen learns to reconstruct its input; all other layers stay as they are.

    Masci et al. (2011), "Stacked convolutional auto-encoders for hierarchical feature extraction", section 2.5.

    Example:
        >>> from convae.params import LayerParams
        >>> layers = [LayerParams(filters=4).model_dump(), LayerParams(filters=8).model_dump()]
        >>> objective = LayerReconstruction(Autoencoder(1, {}, layers, tied_weights=False), None, None, frozen=1)
        >>> [tuple(parameter.shape) for parameter in objective.trained()]
        [(8, 4, 3, 3), (8,), (8, 4, 3, 3), (4,)]
    """

    @property
    def depth(self) -> int:
        """Number of layers up to the one that learns."""
        return self.frozen + 1

    def loss(self, preprocessed: Tensor, labels: Tensor | None) -> Tensor:
        """Mean squared error of the layer's input; where the corruption masks pixels, over these only."""
        with torch.no_grad(), self._full_precision(preprocessed):
            incoming = self.autoencoder.input_of(self.frozen, preprocessed)
        corrupted, counted = self._corrupt(incoming)
        reconstruction = self.autoencoder.reconstruct_layer(self.frozen, corrupted)
        return reconstruction_error(reconstruction, incoming, counted, self.batch)

    def trained(self) -> Iterator[nn.Parameter]:
        """The parameters of the layer, of its sparsity and of its decoder; tied filters are one parameter."""
        network = self.autoencoder
        own = nn.ModuleList([part[self.frozen] for part in (network.layers, network.sparsity, network.decoder)])
        return own.parameters()

    def start_training(self) -> None:
        """Enter training mode; all other layers stay in evaluation mode."""
        self.train()
        self.autoencoder.eval()
        for own in (self.autoencoder.layers, self.autoencoder.sparsity):
            own[self.frozen].train()


class PlaceReconstruction(LayerReconstruction):
    """The first layer that is not frozen learns to reconstruct windows of its input, each from its own place alone.

    The layer is a 1×1 convolutional autoencoder of the whitened windows, with unit filters that the decoder shares. It
    sees only windows at places drawn at random.

    Args:
        autoencoder: the network, whose layers up to this one are fitted.
        augmentation, frozen: see `Objective`.
        places: windows drawn from each image of a batch.

    Example:
        >>> from convae.params import LayerParams
        >>> layer = LayerParams(filters=4, activation="linear", input={"normalization": None, "whitening": None})
        >>> network = Autoencoder(1, {}, [layer.model_dump()], tied_weights=True)
        >>> network.initialize(torch.Generator())
        >>> PlaceReconstruction(network, None, 0, places=32)((torch.zeros(2, 1, 8, 8), None)).item()
        0.0
    """

    def __init__(self, autoencoder: Autoencoder, augmentation: Augmentation, frozen: int, places: int) -> None:
        super().__init__(autoencoder, None, augmentation, frozen)
        self.places = places

    def loss(self, preprocessed: Tensor, labels: Tensor | None) -> Tensor:
        """Mean squared error of the whitened windows."""
        network, layer, device = self.autoencoder, self.autoencoder.layers[self.frozen], preprocessed.device
        with torch.no_grad(), self._full_precision(preprocessed):
            incoming = network.input_of(self.frozen, preprocessed)
            number = prod(layer.geometry.convolved((incoming.shape[2], incoming.shape[3])))
            places = self.batch.drawn(
                lambda images: torch.randint(number, (images, self.places), device=device), len(preprocessed)
            )
            windows = layer.input.whiten(layer.input.windows(incoming, places))
        filters = layer.unit_filters
        code = network.sparsity[self.frozen](windows @ filters.T)
        errors = (code @ filters - windows).square()
        return self.batch.mean(errors.sum(), len(preprocessed), self.places * windows.shape[1])


class SimultaneousReconstruction(Objective):
    """All layers learn at once, each to reconstruct its own input; no gradient passes between layers.

    With corruption the first layer's target is the clean image. In a network stacked on reconstructions it is the
    target of every layer, so that each layer removes noise that the one below has left.

    Example:
        >>> from convae.params import LayerParams
        >>> layers = [LayerParams(filters=4).model_dump(), LayerParams(filters=8).model_dump()]
        >>> network = Autoencoder(1, {}, layers, tied_weights=False)
        >>> network.initialize(torch.Generator())
        >>> SimultaneousReconstruction(network, None, None)((torch.zeros(2, 1, 8, 8, dtype=torch.uint8), None)).item()
        0.0
    """

    def loss(self, preprocessed: Tensor, labels: Tensor | None) -> Tensor:
        """Sum of the layers' mean squared errors."""
        network = self.autoencoder
        incoming, counted = self._corrupt(preprocessed)
        total = torch.zeros((), device=preprocessed.device)
        on_reconstructions = network.stacked_on == "reconstructions"
        for index, layer in enumerate(network.layers):
            maps = layer(incoming)
            reconstruction = network.reconstruct_layer(index, incoming, maps)
            target = preprocessed if self.corruption and (on_reconstructions or index == 0) else incoming
            total = total + reconstruction_error(
                reconstruction, target, counted if target is preprocessed else None, self.batch
            )
            incoming = (reconstruction if on_reconstructions else maps).detach()
        return total


class Classification(Objective):
    """Predicts labels from the last layer's maps: both signs rectified, averaged over a grid, then batch-normalised.

    The head does not use the readout of the features, so a new readout needs no new training.

    Args:
        autoencoder: the network, whose encoder learns.
        augmentation, frozen: see `Objective`.
        size: height and width of the images.
        classes: number of classes.
        seed: seeds the head's initial weights.

    Example:
        >>> from convae.params import LayerParams
        >>> network = Autoencoder(1, {}, [LayerParams(filters=4).model_dump()], tied_weights=False)
        >>> objective = Classification(network, augmentation=None, size=(8, 8), classes=10, seed=0)
        >>> [tuple(parameter.shape) for parameter in objective.head_parameters()]  # 392 are both signs of 4 maps of 7×7
        [(392,), (392,), (10, 392), (10,)]
    """

    def __init__(
        self, autoencoder: Autoencoder, augmentation: Augmentation, size: Size, classes: int, seed: int, frozen: int = 0
    ) -> None:
        super().__init__(autoencoder, None, augmentation, frozen)
        _, (height, width) = layer_sizes(size, autoencoder.geometry, autoencoder.stacked_on)[-1]
        self.grid = (min(HEAD_GRID, height), min(HEAD_GRID, width))
        inputs = 2 * autoencoder.layers[-1].convolution.out_channels * self.grid[0] * self.grid[1]
        torch.manual_seed(seed)
        self.head = nn.Sequential(BatchNorm1d(inputs, self.batch), nn.Linear(inputs, classes))

    def loss(self, preprocessed: Tensor, labels: Tensor | None) -> Tensor:
        """Mean cross-entropy (natural logarithm)."""
        assert labels is not None
        maps = self.autoencoder.encode(preprocessed)[-1]
        pooled = [pool_over_grid(part.relu(), self.grid, "mean").flatten(1) for part in (maps, -maps)]
        scores = self.head(torch.cat(pooled, 1))
        return self.batch.mean(F.cross_entropy(scores, labels, reduction="sum"), len(labels))

    def trained(self) -> Iterator[nn.Parameter]:
        """The parameters of the head and of the layers that are not frozen, and of decoders that they read through."""
        network = self.autoencoder
        learning = nn.ModuleList([network.layers[self.frozen :], self.head])
        if network.stacked_on == "reconstructions":
            learning += [network.decoder[self.frozen : -1], network.sparsity[self.frozen : -1]]
        return learning.parameters()

    def head_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters of the head."""
        return self.head.parameters()
