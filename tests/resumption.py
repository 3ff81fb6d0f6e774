"""Training that is interrupted and resumed."""

import pytest
import torch

from convae.training.train import train_encoder


def resumes_alike(params, train_set, validation_set, death, whole, history):
    """Die after an epoch, before its checkpoint is written; resume, and end as if undisturbed."""

    def die(row):
        if row["epoch"] == death:
            raise KeyboardInterrupt

    with pytest.raises((KeyboardInterrupt, SystemExit)):
        train_encoder(params, train_set, validation_set, die)
    seen = []
    resumed, again, _ = train_encoder(params, train_set, validation_set, seen.append)
    assert again == history == seen
    state = resumed.autoencoder.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in whole.autoencoder.state_dict().items())
