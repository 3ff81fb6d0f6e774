"""`convae …`, for those who look at results or use an encoder."""

import argparse
import os
import sys
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path

from convae import __version__
from convae.datasets.foreign import FORMAT_NAMES
from convae.errors import ConvaeError
from convae.terminal import finished_bars, survive_any_encoding

EXAMPLES = """examples:
  convae classify photo.jpg pictures/          labels and probabilities
  convae features 'scans/**/*.png' -o f.npy    one row of features for each picture
  convae info models/encoder                   what it is, how good, from where
  convae export --onnx encoder.onnx            for runtimes without Python
  convae publish                               encoder and classifier into MLflow's registry
  convae ui                                    compare experiments in a browser
  convae search search.yaml                    vary parameters, by as many workers as are started
  convae sync                                  after `git pull`, `dvc exp pull` or runs without MLflow
  convae verify                                rerun all, and say whether it gives the same bits
  convae lineage models/encoder                the data, code, parameters and runs that an encoder is from
"""
IMAGES = f"""IMAGES are files, folders (every {FORMAT_NAMES} below them), patterns such as
'scans/**/*.png', or - for names from standard input, one a line. A picture that can't be read is reported and left out,
and the exit code is 1. Pictures are resized and read like the training images.
"""
DETAILS = {
    "features": f"""{IMAGES}
A .parquet file has the columns file, feature_0, feature_1 and so on. With a .npy file, float32 [N, D], the names of the
pictures go to standard output in the order of its rows.

examples:
  convae features pictures/ -o features.parquet
  find . -name '*.png' | convae features - -o features.npy > files.txt
""",
    "classify": f"""{IMAGES}
examples:
  convae classify photo.jpg
  convae classify pictures/ --json --model models:/convae-classifier@champion
""",
    "reconstruct": f"""{IMAGES}
Writes a PNG for each: the preprocessed picture on the left, its reconstruction on the right; and prints the mean
squared error between them.

example:
  convae reconstruct pictures/ -o reconstructions/
""",
    "export": """The model maps images, uint8 [N, C, H, W], to features, float32 [N, D], for any N. H and W are those of
the training images, since features are comparable only between images of one size. The file is checked against the
encoder before it is kept.

example:
  convae export --onnx encoder.onnx
""",
    "publish": """The models convae-encoder and convae-classifier get a new version each. Their alias champion moves to
it if there was none, or if it is more accurate with the same images to learn from and the same validation images. Two
of these go to the registry as an example.

example:
  convae publish && mlflow models serve -m models:/convae-classifier@champion --env-manager local
""",
    "info": """examples:
  convae info
  convae info models:/convae-classifier@champion
""",
    "ui": """example:
  convae ui --port 5001
""",
    "sync": """What MLflow has already stays as it is.

example:
  git fetch && convae sync
""",
    "search": """Each worker that is started in addition, here or on a machine with the same storage, shares the trials.
One that was killed costs nothing but time: another worker, or this command when it is started again, takes up its
trial. What a trial printed is in .convae/search/.

example:
  convae search search.yaml
""",
    "verify": """The pipeline runs anew in .convae/verify, with what git and data/ have, and nothing beside that folder
changes. Files that differ are compared by their numbers, and differences of parameters, code, processor and versions
are named. The exit code is 1 if the results are others.

example:
  convae verify
""",
    "lineage": """examples:
  convae lineage models/encoder
  convae lineage ~/Downloads/encoder
""",
}


def main() -> None:
    """Parse the command line and run one command; a user's mistake is one line and exit code 1."""
    survive_any_encoding()
    parser, names = _parser()
    if len(sys.argv) > 1 and not sys.argv[1].startswith("-") and sys.argv[1] not in names:
        nearest = get_close_matches(sys.argv[1], names, n=1)
        advice = f"did you mean '{nearest[0]}'?" if nearest else f"there are {', '.join(names)}"
        parser.error(f"no command '{sys.argv[1]}'; {advice}")
    arguments = parser.parse_args()
    module, _, function = vars(arguments).pop("command").partition(":")
    try:
        # Imported here alone, so that help is there at once.
        with finished_bars():
            getattr(import_module(f"convae.{module}"), function)(**vars(arguments))
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read the output has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (ConvaeError, ModuleNotFoundError, OSError, KeyboardInterrupt) as error:
        if isinstance(error, KeyboardInterrupt):
            print("convae: interrupted", file=sys.stderr)
            sys.exit(130)
        sys.exit(f"convae: {_line(error)}")


def _line(error: Exception) -> str:
    """What a user is told of an error."""
    if isinstance(error, ModuleNotFoundError):  # the pipeline's packages are an extra
        return f"{error}; install convae[pipeline]"
    if isinstance(error, OSError) and error.filename:  # an output that can't be written
        return f"{error.filename}: {error.strerror}"
    return str(error)


def _parser() -> tuple[argparse.ArgumentParser, list[str]]:
    """The parser, and the names of the commands."""
    parser = argparse.ArgumentParser(
        prog="convae",
        description="Convolutional autoencoders: features learned without labels.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"convae {__version__}")
    commands = parser.add_subparsers(metavar="command", required=True)

    def add(name: str, command: str, text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(
            name,
            help=text,
            description=f"{text[0].upper()}{text[1:]}.",
            epilog=DETAILS.get(name),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        added.set_defaults(command=command)
        return added

    features = add("features", "commands:write_features", "read the features of pictures")
    _add_images(features)
    _add_encoder(features)
    _add_original_size(features)
    features.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help=".parquet or .npy")
    _add_force(features)
    classify = add("classify", "commands:classify", "say what pictures show")
    _add_images(classify)
    text = "with encoder/ and classifier/ in it, or a models:/ address (default: %(default)s)"
    classify.add_argument("--model", default="models", metavar="FOLDER", help=text)
    classify.add_argument("--json", action="store_true", dest="as_json", help="a list of objects instead of lines")
    reconstruct = add(
        "reconstruct", "commands:reconstruct", "show what an encoder sees and what its decoder makes of it"
    )
    _add_images(reconstruct)
    _add_encoder(reconstruct)
    _add_original_size(reconstruct)
    reconstruct.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER", help="takes the pictures")
    _add_force(reconstruct)
    export = add("export", "export:export_onnx", "write an encoder with its readout as ONNX")
    _add_encoder(export)
    export.add_argument("--onnx", type=Path, required=True, metavar="FILE", dest="output", help="takes the model")
    text = "allow for images of any size; a readout that takes maxima can't"
    export.add_argument("--any-size", action="store_true", help=text)
    _add_force(export)
    info = add("info", "commands:print_info", "say what an encoder is, how good, and from where")
    info.add_argument("source", nargs="?", default="models/encoder", metavar="ENCODER", help="(default: %(default)s)")
    publish = add("publish", "tracking.registry:publish", "put encoder and classifier into MLflow's model registry")
    text = "with encoder/ and classifier/ in it (default: %(default)s)"
    publish.add_argument("--model", type=Path, default=Path("models"), metavar="FOLDER", dest="folder", help=text)
    ui = add("ui", "tracking.ui:open_ui", "sync, then open MLflow on the experiments, for this machine only")
    ui.add_argument("--port", type=int, default=5000, help="where the server listens (default: %(default)s)")
    add("sync", "tracking.ui:synchronise", "give MLflow the runs it lacks, from every dvc.lock that git knows")
    search = add(
        "search", "search.worker:search", "vary parameters as a file says, and find the best validation accuracy"
    )
    search.add_argument("path", type=Path, metavar="FILE", help="what to vary, such as search.yaml")
    add("verify", "tracking.verify:verify", "run the pipeline anew elsewhere, and compare every result with dvc.lock")
    lineage = add("lineage", "tracking.ui:print_lineage", "say where something that a stage wrote is from")
    lineage.add_argument("path", type=Path, help="a file or folder such as models/encoder, here or copied elsewhere")
    return parser, list(commands.choices)


def _add_images(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", nargs="+", metavar="IMAGES", help="files, folders, patterns, or - (see below)")


def _add_encoder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--encoder",
        default="models/encoder",
        metavar="FOLDER",
        help="or an address such as models:/convae-encoder@champion (default: %(default)s)",
    )


def _add_original_size(parser: argparse.ArgumentParser) -> None:
    text = "don't resize; features are comparable only between pictures of the size that the encoder was trained on"
    parser.add_argument("--original-size", action="store_false", dest="resize", help=text)


def _add_force(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--force", action="store_true", help="overwrite files that exist")


if __name__ == "__main__":
    main()
