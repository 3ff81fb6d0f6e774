import numpy as np
import pandas as pd
import pytest
from matplotlib.image import imread

from convae.datasets.image_set import ImageSet
from convae.models.geometry import LayerGeometry, ReceptiveField
from convae.reporting.charts import confusion_figure, learning_curves_figure, mistakes_figure
from convae.reporting.drawing import Paint, save_figure, short, signed_to_rgb, style, tile, to_rgb
from convae.reporting.figures import _patch, example_images, filters_figure, resize, strongest_patches_figure
from convae.training.train import train_encoder


def test_zero_is_white_positive_blue_and_negative_red():
    zero, positive, negative = signed_to_rgb(np.array([0.0, 0.5, -0.5]))
    assert zero == pytest.approx([1, 1, 1], abs=0.04)
    assert positive[2] > positive[0]
    assert negative[0] > negative[2]


def test_colour_stays_and_grey_becomes_three_channels():
    images = np.random.default_rng(0).random((2, 3, 4, 5))
    assert np.array_equal(to_rgb(images), images.transpose(0, 2, 3, 1))
    grey = to_rgb(images[:, :1])
    assert grey.shape == (2, 4, 5, 3)
    assert np.array_equal(grey[..., 0], images[:, 0])
    assert np.array_equal(grey[..., 2], images[:, 0])


def test_resize_repeats_pixels():
    picture = np.arange(12.0).reshape(1, 2, 2, 3)
    assert np.array_equal(resize(picture, (4, 6)), picture.repeat(2, axis=1).repeat(3, axis=2))


@pytest.mark.parametrize(("channels", "kernel", "count"), [(1, (3, 3), 4), (3, (7, 5), 40), (8, (1, 1), 300)])
def test_only_the_first_256_filters_are_drawn_even_if_dead(tmp_path, channels, kernel, count):
    filters = np.random.default_rng(0).normal(size=(count, channels, *kernel)).astype(np.float32)
    filters[0] = 0
    save_figure(filters_figure(filters), tmp_path / "filters.png")
    assert np.isfinite(imread(tmp_path / "filters.png")).all()


def test_pictures_keep_their_position_and_shape(tmp_path):
    red, blue = np.zeros((1, 4, 8, 3)), np.zeros((1, 4, 8, 3))
    red[..., 0] = blue[..., 2] = 1
    with style():
        save_figure(tile([red, blue]), tmp_path / "tiles.png")
    picture = imread(tmp_path / "tiles.png")[..., :3]
    reds, blues = (np.argwhere((picture == colour).all(axis=-1)) for colour in ((1, 0, 0), (0, 0, 1)))
    height, width = np.ptp(reds, axis=0)
    assert width / height == pytest.approx(2, rel=0.05)
    assert reds[:, 0].max() < blues[:, 0].min()


def training_history(train_loss, validation_loss):
    epochs = np.arange(len(train_loss))
    losses = {"train_loss": train_loss, "sample_loss": train_loss, "validation_loss": validation_loss}
    return pd.DataFrame({"phase": 0, "epoch": epochs, "trained": epochs + 1, **losses, "probe_accuracy": np.nan})


def test_the_users_matplotlib_style_is_ignored(tmp_path):
    import matplotlib

    history = training_history([2.0, 1.0], [2.0, 1.5])
    for name, size in (("a.png", 6), ("b.png", 30)):
        with matplotlib.rc_context({"font.size": size, "lines.linewidth": size}), style():
            save_figure(learning_curves_figure(history), tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_the_lowest_validation_loss_is_marked():
    history = training_history([4.0, 3, 2, 1], [4.0, 2.5, 3, 3.5])
    marked = next(line for line in learning_curves_figure(history).axes[0].lines if line.get_label() == "epoch kept")
    assert (list(marked.get_xdata()), list(marked.get_ydata())) == ([2], [2.5])


def test_within_epochs_the_loss_of_a_sample_is_drawn_and_below_it_the_probe():
    history = training_history([4.0, 3, 2, 1], [None, 2.5, None, 3.5]).assign(
        trained=[0.5, 1, 1.5, 2], sample_loss=[4.0, 2, 3, 1], probe_accuracy=[None, 0.7, None, 0.8]
    )
    loss, probe = learning_curves_figure(history).axes
    lines = {line.get_label(): line.get_ydata().tolist() for line in loss.lines}
    assert lines == {"training": [4, 3, 2, 1], "validation": [4, 2, 3, 1], "epoch kept": [2]}
    assert probe.lines[0].get_xdata().tolist() == [1, 2]
    assert probe.lines[0].get_ydata().tolist() == [0.7, 0.8]


def test_few_classes_show_counts_and_many_only_names():
    few = confusion_figure(np.array([[5, 1], [0, 7]]), ["a", "b"]).axes[0]
    assert [text.get_text() for text in few.texts] == ["5", "1", "7"]
    many = confusion_figure(np.eye(100, dtype=int), [f"class {index}" for index in range(100)]).axes[0]
    assert len(many.texts) == 0
    assert [label.get_text() for label in many.get_yticklabels()][99] == "class 99"


def predictions(**columns):
    table = {"index": range(4), "truth": ["a", "b", "a", "b"], "prediction": ["a", "a", "b", "a"], **columns}
    return pd.DataFrame(table)


@pytest.mark.parametrize("certainty", ["confidence", "margin"])
def test_mistakes_are_sorted_by_confidence(certainty):
    images = np.zeros((4, 1, 5, 5), np.uint8)
    figure = mistakes_figure(images, predictions(**{certainty: [0.99, 0.5, 0.9, 0.9]}), Paint())
    shown = [axes.texts[0].get_text() for axes in figure.axes if axes.texts]
    assert shown == ["a", "b", "b"]  # images 2, 3 and 1
    assert [axes.get_title().splitlines()[0] for axes in figure.axes[:3]] == ["b", "a", "a"]


def test_without_mistakes_there_is_no_figure():
    table = predictions(confidence=[1.0, 1, 1, 1]).assign(prediction=["a", "b", "a", "b"])
    assert mistakes_figure(np.zeros((4, 1, 5, 5), np.uint8), table, Paint()) is None


def test_examples_are_the_first_of_each_class():
    labels = np.array([2, 2, 0, 1, 0])
    images = np.arange(5, dtype=np.uint8).reshape(5, 1, 1, 1)
    chosen, names = example_images(ImageSet(images, labels, ("a", "b", "c"), ""))
    assert (chosen.ravel().tolist(), names) == ([2, 3, 0], ["a", "b", "c"])
    chosen, names = example_images(ImageSet(images, None, (), ""))
    assert (chosen.ravel().tolist(), names) == ([0, 1, 2, 3, 4], ["0", "1", "2", "3", "4"])


def test_long_names_are_shortened_to_one_line():
    assert short("a\nb  c") == "a b c"
    assert len(short("x" * 100)) == 22


def test_a_patch_is_exactly_what_a_place_of_a_map_depends_on():
    layers = [
        LayerGeometry((5, 3), (2, 1), "same", pool=(1, 2), output_pool=(2, 1)),
        LayerGeometry((3, 3), padding="full"),
    ]
    field = ReceptiveField.of(layers)
    image = np.arange(1, 1 + 24 * 20, dtype=np.uint8).reshape(1, 24, 20)
    picture = Paint()(image)
    corner = _patch(picture, (0, 0), field)
    assert corner.shape == (*field.size, 3)
    top, left = (-start for start in field.start)
    assert not corner[:top].any()
    assert not corner[:, :left].any()
    seen = image[0, : field.size[0] - top, : field.size[1] - left]
    assert np.array_equal(np.rint(corner[top:, left:, 0] * 255), seen)
    shifted = _patch(picture, (2, 3), field)
    down, right = 2 * field.step[0] + field.start[0], 3 * field.step[1] + field.start[1]
    assert round(255 * shifted[max(0, -down), max(0, -right), 0]) == image[0, max(0, down), max(0, right)]


def test_a_map_is_shown_with_what_it_responds_to_most(shipped, train_set, validation_set, tmp_path):
    params = shipped(objective={"kind": "none", "sparsity": None})
    encoder, _, _ = train_encoder(params, train_set, validation_set, lambda row: None, tmp_path, progress=False)
    figure = strongest_patches_figure(encoder, validation_set.images, 1, Paint())
    assert len(figure.axes[0].get_xticklabels()) == 8
    maps = encoder.activation_maps(validation_set.images)[1]
    strongest = np.abs(maps[:, 0]).reshape(len(maps), -1)
    image, place = np.unravel_index(strongest.argmax(), strongest.shape)
    field = ReceptiveField.of(encoder.autoencoder.geometry)
    patch = _patch(Paint()(validation_set.images[image]), divmod(int(place), maps.shape[3]), field)
    scale = -(-96 // (3 * field.size[0] + 2))
    shown = figure.axes[0].images[0].get_array()[: field.size[0] * scale : scale, : field.size[1] * scale : scale]
    assert np.allclose(shown, patch)
    # Whatever lies outside the patch does not change the activation.
    changed = 255 - validation_set.images[[image]]
    row, column = (field.start[axis] + divmod(int(place), maps.shape[3])[axis] * field.step[axis] for axis in (0, 1))
    inside = (slice(max(0, row), row + field.size[0]), slice(max(0, column), column + field.size[1]))
    changed[0, 0][inside] = validation_set.images[image, 0][inside]
    same = encoder.activation_maps(changed)[1][0, 0].ravel()[place]
    assert same == pytest.approx(maps[image, 0].ravel()[place], abs=1e-4)
