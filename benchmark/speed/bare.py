"""Training and extraction in as little code as does the same arithmetic."""

import time
from functools import partial
from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import CosineAnnealingLR

from convae.devices import exact_arithmetic
from convae.encoder import Encoder
from convae.models.draws import random_seed
from convae.models.initialization import fit_layer
from convae.params import Params


@exact_arithmetic()
def train(params: Params, encoder: Encoder, images: Tensor, validation: Tensor) -> tuple[float, Tensor]:
    """Train an untrained encoder for two epochs a phase, on the device of the images.

    Returns:
        The seconds of the second epochs, and the last layer's filters.
    """
    device, count = images.device, len(images)
    network = encoder.autoencoder.requires_grad_(True).to(device)
    on_cpu = images.cpu()

    def whole(batch: Tensor) -> Tensor:
        return F.mse_loss(network(batch), batch)

    def at_places(index: int, batch: Tensor) -> Tensor:
        layer = network.layers[index]
        with torch.no_grad():
            incoming = network.input_of(index, batch)
            number = prod(layer.geometry.convolved((incoming.shape[2], incoming.shape[3])))
            places = torch.randint(number, (len(batch), params.train.places or 0), device=device)
            windows = layer.input.whiten(layer.input.windows(incoming, places))
        filters = layer.unit_filters
        return F.mse_loss(network.sparsity[index](windows @ filters.T) @ filters, windows)

    seconds, steps = 0.0, -(-count // params.train.batch_size)
    for index in range(len(network.layers) if params.train.places else 1):
        if index:
            fit_layer(network.cpu(), index, "normal", on_cpu, params.seed)
            network.to(device)
        loss = partial(at_places, index) if params.train.places else whole
        learned = (network.layers[index], network.sparsity[index]) if params.train.places else (network,)
        optimizer = torch.optim.Adam(nn.ModuleList(learned).parameters(), params.train.learning_rate)
        schedule = CosineAnnealingLR(optimizer, 2 * steps) if params.train.schedule == "cosine" else None
        for epoch in range(2):
            start = time.perf_counter()
            network.train()
            generator = torch.Generator().manual_seed(random_seed(params.seed, epoch))
            order = torch.randperm(count, generator=generator).to(device)
            for number, chosen in enumerate(order.split(params.train.batch_size)):
                seed = random_seed(params.seed, epoch, 1 + number)
                torch.default_generator.manual_seed(seed)
                if device.type == "cuda":
                    torch.cuda.manual_seed(seed)
                batch = network.preprocessing(images.index_select(0, chosen))
                optimizer.zero_grad()
                loss(batch).backward()
                optimizer.step()
                if schedule:
                    schedule.step()
            network.eval()
            with torch.no_grad():
                for pictures in validation.split(max(params.train.batch_size, 256)):
                    loss(network.preprocessing(pictures))
            if device.type == "cuda":
                torch.cuda.synchronize(device)
        seconds += time.perf_counter() - start
    return seconds, network.layers[-1].convolution.weight.detach()


@exact_arithmetic()
def forward(encoder: Encoder, images: Tensor) -> float:
    """Pass images through network and readout, discard the result, and return the seconds that it took."""
    network, readout = encoder.autoencoder, encoder.readout
    assert readout is not None
    start = time.perf_counter()
    with torch.inference_mode():
        for batch in images.split(encoder.batch_size((images.shape[2], images.shape[3]))):
            readout.pool(network.encode(network.preprocessing(batch.to(encoder.device))))
    if encoder.device.type == "cuda":
        torch.cuda.synchronize(encoder.device)
    return time.perf_counter() - start
