"""Sharded images: reading returns what was written, or raises an error."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from helpers import s3_server
from PIL import Image

from convae.datasets import shards
from convae.datasets.download import download
from convae.datasets.image_set import ImageSet
from convae.datasets.prepare import prepare
from convae.datasets.shards import ShardedImages, ShardWriter, create_shards, pieces_of, write_shards
from convae.errors import ConvaeError
from convae.files import read_json
from convae.params import DataParams

Params = Callable[..., DataParams]
PIXELS = np.random.default_rng(0).integers(0, 256, (50, 2, 3, 4), np.uint8)


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "PIECE_BYTES", 8 * PIXELS[0].nbytes)


@pytest.fixture
def written(tmp_path: Path) -> Any:
    return write_shards(str(tmp_path / "shards"), PIXELS.shape, np.array_split(PIXELS, 3))


def run(data: DataParams, folder: Path) -> Path:
    download(data, folder / "raw", folder / "downloads")
    prepare(data, 0, folder / "raw", folder / "prepared")
    return folder / "prepared"


def test_shards_index_like_an_array(written: ShardedImages) -> None:
    rows = np.array([49, 3, 3, 17])
    for some in (written, ShardedImages(written.address, np.arange(0, 50, 3), written.hashes)):
        array = PIXELS[some.index]
        assert (some.shape, len(some), some.size, some.nbytes) == (array.shape, len(array), array.size, array.nbytes)
        for chosen in (slice(None), slice(5, 12), slice(40, 90), slice(0, 0), rows[some is not written :] % len(some)):
            np.testing.assert_array_equal(some[chosen], array[chosen])
        together = np.concatenate([some.images_of(piece) for piece in range(7)])
        np.testing.assert_array_equal(together, array)
        assert [some.rows_of(piece).stop for piece in range(6)] == [some.rows_of(piece).start for piece in range(1, 7)]


def test_a_sample_covers_all_shards(written: ShardedImages) -> None:
    sample = written.sample(3 * shards.PIECE_BYTES)
    np.testing.assert_array_equal(sample, PIXELS[[*range(8), *range(24, 32), *range(48, 50)]])
    np.testing.assert_array_equal(written.sample(10**9), PIXELS)
    np.testing.assert_array_equal(written.sample(1), PIXELS[:8])


def test_rows_are_spread_over_few_pieces(written: ShardedImages) -> None:
    assert written.spread(10**9, 0).tolist() == list(range(50))
    assert written.spread(5, 1).tolist() == [0, 2, 4, 5, 7]
    assert written.spread(4, 2 * shards.PIECE_BYTES).tolist() == [0, 3, 6, 49]
    some = ShardedImages(written.address, np.array([1, 9, 17, 49]), written.hashes)
    assert some.spread(9, 0).tolist() == [0, 3]
    assert some.spread(9, 10**9).tolist() == [0, 1, 2, 3]


def test_writers_share_an_array_and_missing_images_are_black(tmp_path: Path) -> None:
    address, expected = str(tmp_path / "shards"), PIXELS.copy()
    expected[[0, 20, 49]] = 0
    create_shards(address, PIXELS.shape)
    hashes = []
    for pieces in (slice(0, 3), slice(3, pieces_of(PIXELS.shape))):
        writer = ShardWriter(address, pieces)
        for row, image in enumerate(PIXELS[writer.rows]):
            if writer.rows.start + row not in (0, 20, 49):
                writer[row] = image
        hashes += writer.close()
    np.testing.assert_array_equal(ShardedImages(address, np.arange(50), hashes)[:], expected)


def test_existing_shards_are_kept(written: ShardedImages) -> None:
    pieces = sorted(Path(written.address).rglob("c/*/0/0/0"))
    pieces[1].write_bytes(bytes(len(pieces[1].read_bytes())))
    before = [piece.stat().st_mtime_ns for piece in pieces]
    again = write_shards(written.address, PIXELS.shape, [PIXELS])
    np.testing.assert_array_equal(again[:], PIXELS)
    assert [piece.stat().st_mtime_ns == time for piece, time in zip(pieces, before, strict=True)].count(False) == 1
    other = write_shards(written.address, PIXELS[:20].shape, [PIXELS[:20]])
    np.testing.assert_array_equal(other[:], PIXELS[:20])


def test_sharded_digits_are_the_digits(tmp_path: Path, data_params: Params) -> None:
    whole = run(data_params(dataset="digits"), tmp_path / "whole")
    pieces = run(data_params(dataset="digits", shards=str(tmp_path / "shards")), tmp_path / "pieces")
    for part in ("train", "validation", "test", "unlabelled"):
        one, other = ImageSet.load(whole / part), ImageSet.load(pieces / part)
        assert isinstance(other.images, ShardedImages) == (part == "train")
        np.testing.assert_array_equal(one.images, other.images[:])
        assert read_json(whole / part / "description.json") == read_json(pieces / part / "description.json")
    assert read_json(whole / "description.json") == read_json(pieces / "description.json")
    assert not (pieces / "train/images.npy").exists()


def test_sharded_pictures_are_the_pictures(tmp_path: Path, data_params: Params) -> None:
    for index, pixels in enumerate(PIXELS[:40].transpose(0, 2, 3, 1)):
        path = tmp_path / f"local/{'ab'[index % 2]}/{index:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[..., 0]).save(path)
    Image.fromarray(PIXELS[40, 0]).save(tmp_path / "local/a/39.bmp")
    (tmp_path / "local/a/39.bmp").write_bytes((tmp_path / "local/a/39.bmp").read_bytes()[:-8])
    folder = {"dataset": "image_folder", "image_size": (3, 4), "color": "grey", "test_size": 6, "validation_size": 4}
    whole = run(data_params(**folder, max_rejected=1), tmp_path / "whole")
    pieces = run(data_params(**folder, max_rejected=1, shards=str(tmp_path / "shards")), tmp_path / "pieces")
    summary = read_json(whole / "description.json")
    assert (len(summary["rejected"]), summary["parts"]["train"]["images"]) == (1, 30)
    assert read_json(pieces / "description.json") == summary
    one, other = ImageSet.load(whole / "train"), ImageSet.load(pieces / "train")
    np.testing.assert_array_equal(one.images, other.images[:])
    assert (whole / "train/paths.txt").read_bytes() == (pieces / "train/paths.txt").read_bytes()


def test_pictures_fitted_otherwise_have_shards_of_their_own(tmp_path: Path, data_params: Params) -> None:
    (tmp_path / "local").mkdir()
    for index, pixels in enumerate(PIXELS[:20, 0]):
        Image.fromarray(pixels).save(tmp_path / f"local/{index:02}.png")
    folder = {"dataset": "image_folder", "image_size": (4, 9), "color": "grey", "test_size": 3, "validation_size": 3}
    train = {}
    for fit in ("crop", "pad"):
        prepared = run(data_params(**folder, fit=fit, shards=str(tmp_path / "shards")), tmp_path / fit)
        train[fit] = ImageSet.load(prepared / "train")
    assert not np.array_equal(train["crop"].images[:], train["pad"].images[:])


def test_an_object_store_works_like_a_folder(
    tmp_path: Path, data_params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "PIECE_BYTES", 300 * 64)  # each takes several requests
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "anyone")
    with s3_server(tmp_path, "bucket") as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        folder = run(data_params(dataset="digits", shards="s3://bucket/images"), tmp_path)
        images = ImageSet.load(folder / "train").images
        assert read_json(folder / "train/shards.json")["address"] == "s3://bucket/images/digits/train"
        whole = run(data_params(dataset="digits"), tmp_path / "whole")
        np.testing.assert_array_equal(images[:], ImageSet.load(whole / "train").images)
        with pytest.raises(ConvaeError, match=r"data.shards: s3://nowhere/images/digits/train: .*"):
            run(data_params(dataset="digits", shards="s3://nowhere/images"), tmp_path)


def test_a_missing_or_wrong_shard_is_reported(written: ShardedImages) -> None:
    piece = Path(written.address) / "c/2/0/0/0"
    content = piece.read_bytes()
    piece.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    message = rf"^{written.address}: piece 2 is missing or has changed; `dvc repro --force prepare` writes it again$"
    with pytest.raises(ConvaeError, match=message):
        written.images_of(2)
    piece.unlink()
    with pytest.raises(ConvaeError, match=message):
        written.images_of(2)
    np.testing.assert_array_equal(written.images_of(3), PIXELS[24:32])
    piece.write_bytes(content[:5])
    with pytest.raises(ConvaeError, match=f"^data.shards: {written.address}: "):
        written.images_of(2)
    shutil.rmtree(written.address)
    with pytest.raises(ConvaeError, match=f"^data.shards: {written.address}: "):
        ShardedImages(written.address, written.index, written.hashes)


@pytest.mark.parametrize("other", [{"compressors": "auto"}, {"dtype": "float32"}, {"zarr_format": 2}])
def test_files_not_written_by_prepare_are_not_read(written: ShardedImages, other: dict[str, Any]) -> None:
    kept: dict[str, Any] = {"shape": PIXELS.shape, "chunks": (8, 2, 3, 4), "dtype": "uint8", "overwrite": True}
    zarr.create_array(written.address, **kept | other)
    with pytest.raises(ConvaeError, match="not an array of images as `prepare` writes them"):
        ShardedImages(written.address, written.index, written.hashes)
