import pytest
import torch

from convae.models.readout import Readout


def readout(**changes):
    defaults = {
        "layers": [-1],
        "divisive_normalization": None,
        "rectification": "none",
        "threshold": 0.0,
        "pooling": "mean",
        "grid": (1, 1),
        "power": 1.0,
        "standardize": False,
    }
    return Readout(**(defaults | changes))


MAPS = torch.tensor([[[[1.0, -2.0], [3.0, -4.0]]]])


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, [-0.5]),
        ({"pooling": "max"}, [3.0]),
        ({"rectification": "positive"}, [1.0]),
        ({"rectification": "both"}, [1.0, 1.5]),
        ({"rectification": "both", "threshold": 1.0}, [0.5, 1.0]),
        ({"rectification": "both", "pooling": "max", "power": 0.5}, [3**0.5, 2.0]),
        ({"power": 0.5, "grid": (2, 2)}, [1.0, -(2**0.5), 3**0.5, -2.0]),
        ({"grid": (1, 2)}, [2.0, -3.0]),
    ],
)
def test_readout_computed_by_hand(changes, expected):
    torch.testing.assert_close(readout(**changes)([MAPS]), torch.tensor([expected]))


def test_divisive_normalization_computed_by_hand():
    maps = torch.tensor([3.0, 4.0]).view(1, 2, 1, 1)  # mean square 12.5
    expected = torch.tensor([[3.0, 4.0]]) / (12.5 + 0.25) ** 0.5
    torch.testing.assert_close(readout(divisive_normalization=0.5)([maps]), expected)


def test_layers_are_joined_in_the_requested_order():
    first, second = torch.full((2, 3, 4, 4), 1.0), torch.full((2, 2, 2, 2), 5.0)
    assert readout(layers=[-1, 0])([first, second]).tolist() == [[5.0, 5.0, 1.0, 1.0, 1.0]] * 2


@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_grids_that_divide_the_map_equal_adaptive_pooling(pooling):
    maps = torch.randn(2, 3, 12, 8)
    adaptive = getattr(torch.nn.functional, f"adaptive_{'avg' if pooling == 'mean' else 'max'}_pool2d")
    torch.testing.assert_close(readout(pooling=pooling, grid=(4, 2))([maps]), adaptive(maps, (4, 2)).flatten(1))


@pytest.mark.parametrize("size", [(7, 7), (28, 28), (30, 41), (96, 64)])
def test_every_image_size_gives_the_same_number_of_features(size):
    assert readout(grid=(7, 7), rectification="both")([torch.randn(1, 4, *size)]).shape == (1, 4 * 2 * 49)
