"""Run by several processes: trains each experiment in a folder; rank 0 saves the result next to it."""

import sys
from pathlib import Path

from convae.datasets.image_set import ImageSet
from convae.files import write_json
from convae.params import load_params
from convae.processes import connect
from convae.training.train import train_encoder


def main(folder: Path) -> None:
    """`<name>.yaml` becomes `<name>/` and `<name>.json`, encoder and history."""
    processes = connect()
    training, validation = ImageSet.load(folder / "prepared/train"), ImageSet.load(folder / "prepared/validation")
    for path in sorted(folder.glob("*.yaml")):
        params, checkpoints = load_params(path), folder / "checkpoints"
        encoder, history, _ = train_encoder(params, training, validation, print, checkpoints, False, processes)
        if not processes.rank:
            encoder.save(folder / path.stem)
            write_json(folder / f"{path.stem}.json", history)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
