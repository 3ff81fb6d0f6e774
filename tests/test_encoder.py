"""The saved encoder: the same after loading, and refused when it is not what was saved."""

import json
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from layers import layer
from PIL import Image

from convae.datasets.reading import Reading
from convae.encoder import Encoder, build_autoencoder, load_encoder
from convae.errors import ConvaeError
from convae.files import content_sha256
from convae.models.readout import Readout
from convae.training.train import train_encoder

LAYER = layer(
    filters=6, kernel=[3, 5], stride=[1, 2], activation="relu", batch_norm=True, pool={"kind": "max", "size": [2, 1]}
)
READOUT = {
    "layers": [-1],
    "divisive_normalization": 0.2,
    "rectification": "positive",
    "threshold": 0.1,
    "pooling": "max",
    "grid": [2, 3],
    "power": 0.5,
    "standardize": True,
}


@pytest.fixture(params=[True, False], ids=["tied", "free"])
def encoder(request):
    config = {
        "channels": 3,
        "image_size": [12, 14],
        "preprocessing": {
            "local_contrast": {"window": 5, "floor": 0.1},
            "whitening": {"kind": "zca", "window": 3, "epsilon": 0.1},
        },
        "layers": [LAYER, LAYER | {"filters": 4}],
        "tied_weights": request.param,
        "stacked_on": "maps",
        "sparsity": {"block": [3, 3], "lifetime": 0.5},
        "decoder": True,
        "readout": READOUT,
    }
    autoencoder = build_autoencoder(config)
    generator = torch.Generator().manual_seed(0)
    autoencoder.initialize(generator)
    images = torch.randint(0, 256, (40, 3, 12, 14), dtype=torch.uint8, generator=generator)
    autoencoder.preprocessing.fit(images, generator)
    autoencoder.train()(autoencoder.preprocessing(images))  # gives batch norm and winners their statistics
    readout = Readout(**READOUT)
    readout.mean, readout.scale = torch.rand(24), torch.rand(24) + 0.5
    return Encoder(autoencoder, readout, config)


@pytest.fixture
def images():
    return np.random.default_rng(1).integers(0, 256, (7, 3, 12, 14), dtype=np.uint8)


def test_saving_and_loading_round_trips_bit_for_bit(encoder, images, tmp_path):
    encoder.save(tmp_path / "first")
    loaded = load_encoder(tmp_path / "first")
    for method in ("features", "preprocess", "reconstruct"):
        np.testing.assert_array_equal(getattr(loaded, method)(images), getattr(encoder, method)(images))
    for mine, theirs in zip(loaded.activation_maps(images), encoder.activation_maps(images), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    loaded.save(tmp_path / "second")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def test_declared_shapes_match_the_activation_maps(encoder, images):
    maps = encoder.activation_maps(images)
    assert encoder.map_sizes == [layer.shape[2:] for layer in maps]
    assert encoder.features(images).shape == (7, 4 * 2 * 3)
    assert encoder.reconstruct(images).shape == images.shape
    assert encoder.filters.shape == (6, 3, 3, 5)
    assert encoder.parameter_count == 6 * (15 * 3 + 1) + 2 * 6 + 4 * (15 * 6 + 1) + 2 * 4


def test_filters_on_principal_components_are_shown_as_filters_of_the_image(encoder, images):
    whitening = {"kind": "pca", "window": 3, "epsilon": 0.1}
    layers = [LAYER | {"kernel": [1, 1], "batch_norm": False, "activation": "linear", "pool": None, "stride": [1, 1]}]
    preprocessing = {"local_contrast": None, "whitening": whitening}
    config = encoder.config | {"layers": layers, "preprocessing": preprocessing, "tied_weights": True, "sparsity": None}
    autoencoder = build_autoencoder(config)
    autoencoder.initialize(torch.Generator().manual_seed(0))
    autoencoder.preprocessing.fit(torch.from_numpy(images), torch.Generator().manual_seed(0))
    made = Encoder(autoencoder, None, config)
    assert made.filters.shape == (6, 3, 3, 3)
    pixels = torch.from_numpy(images) / 255
    answers = torch.nn.functional.conv2d(pixels, torch.from_numpy(made.filters), padding=1)
    differences = (answers - torch.from_numpy(made.activation_maps(images)[0])).flatten(2)
    assert differences.std(2).max() < 1e-5  # all but the means, which are subtracted


def test_an_encoder_without_layers_returns_pixels(encoder, images, tmp_path):
    readout = READOUT | {"grid": [12, 14], "rectification": "none", "power": 1.0, "divisive_normalization": None}
    config = encoder.config | {"layers": [], "preprocessing": {"local_contrast": None, "whitening": None}}
    config |= {"readout": readout, "decoder": False}
    Encoder(build_autoencoder(config), Readout(**readout), config).save(tmp_path / "pixels")
    loaded = load_encoder(tmp_path / "pixels")
    np.testing.assert_allclose(loaded.features(images), images.reshape(7, -1) / 255, rtol=1e-6)
    assert (loaded.parameter_count, loaded.filters.shape, loaded.map_sizes) == (0, (0, 3, 0, 0), [(12, 14)])


def test_images_of_another_size_give_the_same_number_of_features(encoder):
    assert encoder.features(np.zeros((2, 3, 40, 33), np.uint8)).shape == (2, 24)


def test_images_of_another_size_are_encoded_down_to_the_minimum(encoder):
    height, width = encoder.minimum_size
    smallest = np.zeros((1, 3, height, width), np.uint8)
    assert encoder.features(smallest).shape == (1, 24)
    for cut in (smallest[..., 1:, :], smallest[..., 1:]):
        message = rf"images of {cut.shape[2]}×{cut.shape[3]} pixels are too small: this encoder needs {height}×{width}"
        with pytest.raises(ConvaeError, match=message):
            encoder.features(cut)


def test_images_of_several_sizes_have_features_and_no_common_maps(encoder, images):
    larger = np.random.default_rng(2).integers(0, 256, (3, 30, 20), np.uint8)
    mixed = [images[0], larger, images[1]]
    expected = np.concatenate([encoder.features(image[None]) for image in mixed])
    np.testing.assert_allclose(encoder.features(mixed), expected, rtol=1e-5)
    for method in (encoder.activation_maps, encoder.reconstruct, encoder.preprocess):
        with pytest.raises(ConvaeError, match="the images differ in size"):
            method(mixed)


def test_reading_batches_keeps_gradients_enabled(encoder, images):
    first, second = encoder.feature_batches(images), encoder.feature_batches(images)
    for _ in zip(first, second, strict=True):
        assert not torch.is_inference_mode_enabled()
    assert not torch.is_inference_mode_enabled()


def test_images_whose_maps_exceed_the_memory_are_refused(encoder):
    with pytest.raises(ConvaeError, match=r"images of 20000×20000 pixels are too large: .* GB; resize them to 12×14"):
        encoder.features(np.broadcast_to(np.uint8(0), (1, 3, 20000, 20000)))


def test_no_images_have_no_features(encoder):
    for none in ([], (), iter([]), np.array([], str), np.zeros((0, 3, 12, 14), np.uint8)):
        assert encoder.features(none).shape == (0, 24)
        assert encoder.activation_maps(none)[0].shape == (0, 6, 6, 7)


def rewrite(folder: Path, **changes) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def forge(folder: Path, **changes) -> None:
    """Like `rewrite`, and update the hash."""
    config = json.loads((folder / "config.json").read_text()) | changes
    del config["sha256"]
    rewrite(folder, **changes, sha256=content_sha256(config, (folder / "model.safetensors").read_bytes()))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "not an encoder"),
        (lambda folder: (folder / "model.safetensors").unlink(), "not an encoder"),
        (lambda folder: (folder / "config.json").write_text("{"), "not an encoder"),
        (lambda folder: (folder / "config.json").write_text("[]"), "reads formats 3 to 5"),
        (lambda folder: rewrite(folder, format=6), "format 6; this version of convae reads formats 3 to 5"),
        (lambda folder: rewrite(folder, readout=READOUT | {"power": 1.0}), "damaged"),
        (lambda folder: rewrite(folder, trained_on={}), "damaged"),
        (lambda folder: truncate(folder / "model.safetensors"), "damaged"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"\0" * 100), "damaged"),
        (lambda folder: forge(folder, layers=[LAYER]), "do not belong together"),
        (lambda folder: forge(folder, channels=1), "do not belong together"),
        (lambda folder: forge(folder, image_size=None), "do not belong together"),
        (lambda folder: forge(folder, stacked_on="nothing"), "do not belong together"),
        (lambda folder: forge(folder, readout=READOUT | {"grid": [0, 0]}), "0 is not a number of pixels"),
        (lambda folder: forge(folder, readout=READOUT | {"grid": [3, 3]}), "do not belong together"),
        (lambda folder: forge(folder, readout=READOUT | {"layers": [5]}), "do not belong together"),
        (lambda folder: forge(folder, readout=READOUT | {"rectification": "x"}), "do not belong together"),
        (lambda folder: forge(folder, readout=READOUT | {"pooling": "median"}), "do not belong together"),
    ],
)
def test_a_modified_encoder_is_refused_in_one_line(encoder, tmp_path, damage, message):
    encoder.save(tmp_path / "encoder")
    damage(tmp_path / "encoder")
    with pytest.raises(ConvaeError, match=message) as refusal:
        load_encoder(tmp_path / "encoder")
    assert "\n" not in str(refusal.value)


def test_importing_the_encoder_loads_none_of_the_pipeline():
    heavy = ["pytorch_lightning", "mlflow", "dvc", "sklearn", "pandas", "pydantic", "torchvision"]
    code = f"import sys, convae.encoder; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_importing_convae_does_not_load_torch():
    code = "import sys, convae; print('torch' in sys.modules, 'numpy' in sys.modules); convae.load_encoder"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False False"


def test_a_layerless_encoder_is_on_its_readouts_device():
    config = {
        "channels": 1,
        "image_size": [8, 8],
        "preprocessing": {"local_contrast": None, "whitening": None},
        "layers": [],
        "tied_weights": True,
        "stacked_on": "maps",
        "sparsity": None,
        "decoder": False,
        "readout": READOUT,
    }
    readout = Readout(**READOUT)
    readout.mean = torch.zeros(6)
    encoder = Encoder(build_autoencoder(config), readout, config)
    assert encoder.device.type == "cpu"
    readout.to("meta")
    assert encoder.device.type == "meta"


def test_a_saved_encoder_records_its_origin(experiment, train_set, validation_set, tmp_path):
    trained, _, _ = train_encoder(experiment(train={"epochs": 1}), train_set, validation_set, lambda row: None)
    trained.save(tmp_path / "encoder")
    about = json.loads((tmp_path / "encoder/config.json").read_text())
    assert about["value_range"]["uint8"] == [0, 255]
    assert about["trained_on"]["dataset"] == "digits"
    assert about["trained_on"]["sha256"] == train_set.sha256
    assert about["trained_on"]["images"] == len(train_set)
    assert {"convae", "torch"} <= set(about["versions"])
    assert (about["channels"], about["image_size"]) == (1, [8, 8])


def test_a_deeply_nested_description_is_refused(encoder, tmp_path):
    encoder.save(tmp_path / "e")
    (tmp_path / "e/config.json").write_text("[" * 100_000)
    with pytest.raises(ConvaeError, match="not an encoder") as refusal:
        load_encoder(tmp_path / "e")
    assert "\n" not in str(refusal.value)


def test_files_are_read_as_in_training(encoder, tmp_path):
    photo = np.random.default_rng(0).integers(0, 256, (60, 120, 3), np.uint8)
    Image.fromarray(photo).save(tmp_path / "photo.png")
    deep = np.random.default_rng(0).integers(0, 4096, (12, 14), np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    encoder.config["pictures"] = {"fit": "stretch", "white_level": 4095}
    encoder.save(tmp_path / "encoder")
    loaded = load_encoder(tmp_path / "encoder")
    resized = np.asarray(Image.fromarray(photo).resize((14, 12), Image.Resampling.BILINEAR))
    expected = loaded.features(resized[None])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for image in (tmp_path / "photo.png", Image.fromarray(photo), [str(tmp_path / "photo.png")]):
            np.testing.assert_array_equal(loaded.features(image), expected)
        np.testing.assert_array_equal(loaded.reconstruct(tmp_path / "photo.png"), loaded.reconstruct(resized[None]))
        np.testing.assert_array_equal(loaded.preprocess(tmp_path / "photo.png"), loaded.preprocess(resized[None]))
        native = loaded.features(tmp_path / "photo.png", resize=False)
        np.testing.assert_array_equal(native, loaded.features(photo[None], resize=False))
        levels = np.floor(deep / 4095 * 255 + 0.5).astype(np.uint8)
        seen = loaded.features(np.repeat(levels[None, None], 3, axis=1))
        np.testing.assert_array_equal(loaded.features(tmp_path / "deep.png"), seen)
    assert np.abs(native - expected).max() > 0.1


def test_arrays_of_another_size_give_one_warning(encoder):
    images = np.zeros((300, 3, 24, 28), np.uint8)
    with pytest.warns(
        UserWarning, match="images of 24×28 pixels; the encoder learned from 12×14, and features"
    ) as said:
        encoder.features(images)
    assert len(said) == 1
    assert said[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoder.features(images[:1], resize=False)
        encoder.features(images[:, :, :12, :14])
        encoder.activation_maps(images[:1])  # these mean the same whatever the size


def test_an_encoder_in_the_previous_format_crops_as_before(encoder, tmp_path):
    encoder.save(tmp_path)
    forge(tmp_path, format=3)
    assert load_encoder(tmp_path).reading() == Reading(3, (12, 14), "crop", None)


@pytest.mark.parametrize("pictures", [{"fit": "zoom", "white_level": None}, {"fit": "pad", "white_level": -1}, {}, 3])
def test_an_unknown_way_of_reading_is_refused(encoder, tmp_path, pictures):
    encoder.save(tmp_path)
    forge(tmp_path, pictures=pictures)
    if pictures == {}:
        assert load_encoder(tmp_path).reading().fit == "crop"
        return
    with pytest.raises(ConvaeError, match=r"config\.json and model\.safetensors do not belong together"):
        load_encoder(tmp_path)


def test_saving_keeps_other_files_in_the_folder(encoder, images, tmp_path):
    folder = tmp_path / "mine"
    (folder / "photos").mkdir(parents=True)
    (folder / "photos/a.png").write_bytes(b"precious")
    (folder / "README.md").write_text("precious")
    encoder.save(str(folder))
    encoder.autoencoder.layers[0].convolution.bias += 1
    encoder.save(folder)  # in place of the other
    np.testing.assert_array_equal(load_encoder(folder).features(images), encoder.features(images))
    names = ["README.md", "config.json", "model.safetensors", "photos", "photos/a.png"]
    assert sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*")) == names
    (tmp_path / "link").symlink_to(folder)
    encoder.save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()


@pytest.mark.parametrize("kind", ["a file", "a link that leads nowhere"])
def test_saving_over_a_file_is_refused(encoder, tmp_path, kind):
    target = tmp_path / "target"
    target.write_bytes(b"precious") if kind == "a file" else target.symlink_to("nowhere")
    with pytest.raises(ConvaeError, match=f"target: {kind}; name a folder"):
        encoder.save(target)
    assert target.is_symlink() or target.read_bytes() == b"precious"


def test_a_partially_saved_encoder_can_be_overwritten(encoder, tmp_path):
    encoder.save(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    encoder.save(tmp_path)
    load_encoder(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_saving_over_another_kind_of_model_is_refused(encoder, tmp_path, name):
    (tmp_path / name).write_text('{"architectures": ["BertModel"]}')
    with pytest.raises(ConvaeError, match=f"{name}: exists, and is not part of an encoder; name another folder"):
        encoder.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_the_repr_of_an_encoder_is_one_line(encoder):
    layers = "6 filters 3×5, 4 filters 3×5"
    assert repr(encoder) == f"Encoder(3×12×14 images, {layers}, 24 features, on cpu)"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("device", ["cuda", "cuda:3", "mps"])
def test_a_missing_device_is_reported_in_one_line(encoder, device):
    with pytest.raises(ConvaeError, match=f"device {device}: not available") as refusal:
        encoder.to(device)
    assert "\n" not in str(refusal.value)
    assert encoder.device.type == "cpu"
