import pytest
import torch

from convae.models.corruption import Corruption, reconstruction_error
from convae.models.shared_batch import SharedBatch

IMAGES = torch.full((200, 3, 10, 12), 0.5)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def test_gaussian_noise_has_the_requested_deviation():
    noisy, counted = Corruption("gaussian", 0.3, (1, 1), SharedBatch())(IMAGES)
    assert counted is None
    assert (noisy - IMAGES).std().item() == pytest.approx(0.3, rel=0.01)


def test_uniform_noise_stays_within_its_bounds():
    noise = Corruption("uniform", 0.5, (1, 1), SharedBatch())(IMAGES)[0] - IMAGES
    assert noise.abs().max() <= 0.5
    assert noise.std().item() == pytest.approx(0.5 / 3**0.5, rel=0.01)


def test_masking_removes_whole_blocks_in_all_channels():
    masked, hidden = Corruption("masking", 0.4, (4, 5), SharedBatch())(IMAGES)
    assert hidden.shape == (200, 1, 10, 12)
    assert torch.equal(masked, IMAGES * ~hidden)
    for rows in (slice(0, 4), slice(4, 8), slice(8, 10)):
        for columns in (slice(0, 5), slice(5, 10), slice(10, 12)):
            block = hidden[:, 0, rows, columns].flatten(1).float().mean(1)
            assert set(block.tolist()) == {0.0, 1.0}
            assert block.mean().item() == pytest.approx(0.4, abs=0.12)


def test_the_error_counts_only_masked_pixels():
    target = torch.zeros(1, 2, 1, 3)
    reconstruction = torch.tensor([[[[1.0, 2.0, 9.0]], [[3.0, 4.0, 9.0]]]])
    hidden = torch.tensor([[[[True, True, False]]]])
    assert reconstruction_error(reconstruction, target, hidden, SharedBatch()).item() == pytest.approx(
        (1 + 9 + 4 + 16) / 4
    )
    assert reconstruction_error(reconstruction, target, None, SharedBatch()).item() == pytest.approx(
        (1 + 9 + 4 + 16 + 162) / 6
    )
    assert reconstruction_error(reconstruction, target, torch.zeros_like(hidden), SharedBatch()).item() == 0
