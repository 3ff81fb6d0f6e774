"""Geometry against torch, for random shapes, and the numbers of the article."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from layers import layer
from torch.nn import functional as F

from convae.models.autoencoder import Autoencoder
from convae.models.geometry import GeometryError, LayerGeometry, layer_sizes, resolve_kernels, smallest_size

sides = st.tuples(st.integers(1, 24), st.integers(1, 24))
kernels = st.tuples(st.integers(1, 7), st.integers(1, 7))
strides = st.tuples(st.integers(1, 4), st.integers(1, 4))
pools = st.tuples(st.integers(1, 3), st.integers(1, 3))
paddings = st.sampled_from(["full", "same", "valid"])


@settings(max_examples=2000, deadline=None)
@given(sides, kernels, strides, paddings, pools)
def test_sizes_equal_torchs_and_the_transpose_restores_the_input(size, kernel, stride, padding, pool):
    layer = LayerGeometry(kernel, stride, padding, pool)
    assume(padding != "same" or (kernel[0] % 2 and kernel[1] % 2))
    image = torch.zeros(1, 1, *size)
    weight = torch.zeros(1, 1, *kernel)
    try:
        convolved, pooled = layer.convolved(size), layer.output(size)
    except GeometryError:
        with pytest.raises(RuntimeError):
            F.max_pool2d(F.conv2d(image, weight, None, stride, layer.zeros), pool)
        return
    maps = F.conv2d(image, weight, None, stride, layer.zeros)
    assert tuple(maps.shape[2:]) == convolved
    assert tuple(F.max_pool2d(maps, pool).shape[2:]) == pooled
    back = F.conv_transpose2d(maps, weight, None, stride, layer.zeros, layer.output_padding(size))
    assert tuple(back.shape[2:]) == size


@settings(max_examples=100, deadline=None)
@given(sides, st.lists(st.tuples(kernels, strides, paddings, pools), min_size=1, max_size=3))
def test_the_decoder_always_returns_the_size_of_the_input(size, geometries):
    layers = [layer(kernel=k, stride=s, padding=p, pool={"kind": "max", "size": pool}) for k, s, p, pool in geometries]
    try:
        sizes = layer_sizes(size, [LayerGeometry.of(one) for one in layers])
    except GeometryError:
        assume(False)
    network = Autoencoder(3, {}, layers, tied_weights=False).eval()
    network.initialize(torch.Generator().manual_seed(0))
    images = torch.rand(2, 3, *size)
    assert [tuple(maps.shape[2:]) for maps in network.encode(images)] == [output for _, output in sizes]
    assert network(images).shape == images.shape


def test_the_seed_cae_has_the_articles_activation_maps():
    layer = LayerGeometry((3, 3), padding="full")
    assert layer.output((28, 28)) == (30, 30)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (LayerGeometry((5, 5), padding="valid"), "model.layers[0]: a 5×5 kernel .* turns 4×4 into 0×0"),
        (LayerGeometry((2, 2), padding="same"), "'same' needs an odd kernel, found 2×2"),
        (LayerGeometry((3, 3), pool=(1, 5)), "pooling over 1×5 turns 4×4 into 4×0"),
    ],
)
def test_a_layer_that_does_not_fit_is_named_with_both_sizes(layer, message):
    with pytest.raises(GeometryError, match=message.replace("[", r"\[").replace("]", r"\]")):
        layer_sizes((4, 4), [layer])


DENSE = layer(kernel="image", padding="valid")


def test_a_kernel_as_large_as_the_image_is_a_dense_layer():
    resolved = resolve_kernels(
        (8, 6), [layer(padding="valid", pool={"kind": "max", "size": (2, 2)}), DENSE, DENSE], "maps"
    )
    assert [one["kernel"] for one in resolved] == [(3, 3), [3, 2], [1, 1]]
    sizes = layer_sizes((8, 6), [LayerGeometry.of(one) for one in resolved])
    assert sizes == [((8, 6), (3, 2)), ((3, 2), (1, 1)), ((1, 1), (1, 1))]


def test_stacked_on_reconstructions_every_layer_sees_the_image_size():
    layers = [LayerGeometry((3, 3), padding="full"), LayerGeometry((5, 5), padding="full")]
    assert layer_sizes((8, 6), layers, "reconstructions") == [((8, 6), (10, 8)), ((8, 6), (12, 10))]
    assert layer_sizes((8, 6), layers, "maps") == [((8, 6), (10, 8)), ((10, 8), (14, 12))]
    assert resolve_kernels((8, 6), [layer(), DENSE], "reconstructions")[1]["kernel"] == [8, 6]


geometries = st.builds(LayerGeometry, kernels, strides, paddings, pools)
usable = geometries.filter(lambda layer: layer.padding != "same" or (layer.kernel[0] % 2 and layer.kernel[1] % 2))


@settings(max_examples=500, deadline=None)
@given(st.lists(usable, max_size=4), st.sampled_from(["maps", "reconstructions"]))
def test_the_smallest_image_is_the_smallest_that_leaves_a_map_in_each_layer(layers, stacked_on):
    height, width = smallest_size(layers, stacked_on)
    layer_sizes((height, width), layers, stacked_on)
    for size in ((height - 1, width), (height, width - 1)):
        if min(size):
            with pytest.raises(GeometryError):
                layer_sizes(size, layers, stacked_on)


def test_the_smallest_size_is_found_fast_for_any_layers():
    layers = [LayerGeometry((3, 3), pool=(65535, 2))] * 100
    assert smallest_size(layers) == (65535**100, 2**100)
