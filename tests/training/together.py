"""Run by several processes: trains each experiment in a folder, and the first process saves the result beside it."""

import sys
from contextlib import suppress
from pathlib import Path

from convae import processes
from convae.datasets.image_set import ImageSet
from convae.files import write_json
from convae.params import load_params
from convae.training.train import train_encoder


def main(folder: Path) -> None:
    """`<name>.yaml` becomes `<name>/` and `<name>.json`, encoder and history."""
    processes.connect()
    training, validation = ImageSet.load(folder / "prepared/train"), ImageSet.load(folder / "prepared/validation")
    for path in sorted(folder.glob("*.yaml")):
        with suppress(SystemExit):  # of the processes besides the first, when they have done their part
            encoder, history, _ = train_encoder(
                load_params(path), training, validation, lambda row: None, folder / "checkpoints", progress=False
            )
            encoder.save(folder / path.stem)
            write_json(folder / f"{path.stem}.json", history)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
