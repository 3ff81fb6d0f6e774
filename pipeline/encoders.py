"""Make the encoders that the package carries: `make encoders`.

Each is a DVC experiment on the commit that is checked out, run in a clone; a second call continues where the first one
was stopped. The data sets are found as by any other experiment.
"""

import argparse
import shutil
import sys
from dataclasses import replace
from pathlib import Path

from convae.addresses import PRETRAINED
from convae.classifier import load_image_classifier
from convae.errors import ConvaeError
from convae.files import new_folder
from convae.history.deviation import largest_deviation
from convae.model_card import model_card
from convae.names import code
from convae.params import load_params
from convae.search.trial import Trial, base_of_workspace

SYSTEMS = {"fashion_mnist": Path("systems/default.yaml"), "cifar10": Path("systems/cifar10.yaml")}
# The map from features to the compact code would be five times as large as all the rest.
CHANGES = {"features.code": None}


def make(name: str) -> str:
    """Train and evaluate an encoder, and replace the one in the package; return how far they differ."""
    system, target = SYSTEMS[name], PRETRAINED / name
    params = load_params(system)
    base = base_of_workspace(params, system)
    trial = Trial(f"encoder-{name}-{base.commit[:7]}", replace(base, params=system.read_bytes()), CHANGES)
    print(f"{name}: the output is in {trial.log}", flush=True)
    trial.run(lambda: None)
    models = trial.folder / "models"
    classifier = load_image_classifier(models)
    changes = " and ".join(f"{key}: null" for key in CHANGES)
    origin = f"Made by {code('make encoders')} from commit {base.commit[:7]}: {code(str(system))} with {code(changes)}."
    deviation = largest_deviation(target / "encoder", models / "encoder") if target.exists() else None
    with new_folder(target) as scratch:
        for part in ("encoder", "classifier"):
            shutil.copytree(models / part, scratch / part)
        (scratch / "README.md").write_text(
            model_card(name, classifier.encoder, classifier.description, origin), "utf-8"
        )
    trial.discard()
    if deviation is None:
        return "new"
    return "same weights" if deviation == 0 else f"weights differ by up to {deviation:.2g} of the largest magnitude"


def main() -> None:
    """Make the encoders that the command line names, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{' or '.join(SYSTEMS)} (default: both)")
    names = parser.parse_args().names or list(SYSTEMS)
    for name in names:
        if name not in SYSTEMS:
            parser.error(f"no encoder {name!r}; {' or '.join(SYSTEMS)} is allowed")
    try:
        for name in names:
            print(f"{name}: {make(name)}")
    except ConvaeError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
