"""The command `convae`, for people who inspect results or use an encoder."""

import argparse
import gc
import os
import sys
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import TypeAlias

from convae import __version__
from convae.datasets.foreign import FORMAT_NAMES
from convae.errors import ConvaeError
from convae.terminal import finished_bars, survive_any_encoding

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

ELSEWHERE = "fashion_mnist, cifar10, or an address: models:/name@alias, hf://owner/name, https://host/model.tar"

EXAMPLES = """examples:
  convae check pictures/                       can the pipeline use them, and with which parameters?
  convae classify photo.jpg pictures/          labels and probabilities
  convae features 'scans/**/*.png' -o f.npy    one row of features per picture
  convae similar photo.jpg pictures/           the pictures most like it
  convae anomalies pictures/ --sheet odd.png   the most unusual pictures first
  convae info models/encoder                   layers, training data, accuracy
  convae info                                  the encoders that come with the package
  convae export --onnx encoder.onnx            for runtimes without Python
  convae publish                               register encoder and classifier in MLflow
  convae push hf://owner/name                  upload them to the Hugging Face Hub
  convae ui                                    compare experiments in a browser
  convae search search.yaml                    vary parameters; start it again for more workers
  convae sync                                  after `git pull`, `dvc exp pull` or runs without MLflow
  convae verify                                rerun everything and compare the results
  convae lineage models/encoder                the data, code, parameters and runs behind an encoder
"""
IMAGES = f"""IMAGES are files, folders (every {FORMAT_NAMES} in them, at any depth), patterns such as
'scans/**/*.png', or - to read names from standard input, one per line. Unreadable pictures are reported and skipped;
the exit code is then 1. Pictures are read and resized like the training images. Each image of an array, stack.npy or
stack.npz, is a picture; arrays are not resized.
"""
DETAILS = {
    "check": """Reads all pictures as a run would: counts, sizes, classes per part, files that can't be used, copies, an
estimate of disk space and time, and suggested parameters. Nothing is trained. The exit code is 1 if a run would
refuse these pictures.

examples:
  convae check pictures/
  convae check pictures/ --table labels.csv --write
  convae check frames/ --group '(.*)_frame'
  convae check stack.npz
""",
    "features": f"""{IMAGES}
A .parquet file has the columns file, feature_0, feature_1 and so on. A .npy file holds float32 [N, D]; the names of the
pictures are then printed in the order of its rows.

examples:
  convae features pictures/ -o features.parquet
  convae features pictures/ --code -o codes.parquet
  find . -name '*.png' | convae features - -o features.npy > files.txt
""",
    "classify": f"""{IMAGES}
examples:
  convae classify photo.jpg
  convae classify shoe.png --model fashion_mnist
  convae classify pictures/ --json --model models:/convae-classifier@champion
""",
    "reconstruct": f"""{IMAGES}
Writes one PNG per picture, the preprocessed picture on the left and its reconstruction on the right, and prints the
mean squared error between them.

example:
  convae reconstruct pictures/ -o reconstructions/
""",
    "similar": f"""{IMAGES}
Prints distances and files, the most similar first. A distance is 0 between equal pictures and at most 2: it compares
the directions of features, or of compact codes if the encoder has them. By codes, unrelated pictures are about 1.4
apart. The features of FOLDER are kept in ~/.cache/convae; later only new or changed pictures are computed.

examples:
  convae similar photo.jpg pictures/
  convae similar queries/ pictures/ -k 8 --sheet similar.png
""",
    "anomalies": f"""{IMAGES}
The score compares a picture's features with the five nearest of a sample of training images: 3 means three standard
deviations farther away than training images are from each other. Scores above 2 are rare: distances between directions
are bounded, see `convae similar --help`.

examples:
  convae anomalies pictures/
  convae anomalies pictures/ --threshold 1.5 --sheet odd.png
""",
    "export": """The model maps images [N, C, H, W], uint8 unless the training images were float32, to features, float32
[N, D], for any N. H and W are those of the training images, because only features of images of the same size are
comparable. Before the file is saved, its output is checked against the encoder's.

example:
  convae export --onnx encoder.onnx
""",
    "publish": """Adds a version of the models convae-encoder and convae-classifier, unless it already exists. The alias
champion moves to it if there was no champion, or if it is more accurate with the same training and validation images.
Two validation images are stored with each model as its input example.

example:
  convae publish && mlflow models serve -m models:/convae-classifier@champion --env-manager local
""",
    "push": """Uploads encoder, classifier and a model card; the repository is made if it does not exist. Sign in first
with `hf auth login`, or set HF_TOKEN. This needs convae[pipeline,hub], and runs in the repository whose pipeline made
the models.

example:
  convae push hf://owner/name
""",
    "info": """Without an argument, describes models/encoder if it exists, and lists the encoders of the package.

examples:
  convae info
  convae info fashion_mnist
  convae info models:/convae-classifier@champion
""",
    "ui": """example:
  convae ui --port 5001
""",
    "sync": """Runs already in MLflow stay as they are.

example:
  git fetch && convae sync
""",
    "search": """To add a worker, run the same command again, here or on a machine that uses the same storage. A killed
worker costs nothing but time: another worker, or this command when restarted, resumes its trial. The output of trials
is in .convae/search/.

example:
  convae search search.yaml
""",
    "verify": """The pipeline runs in .convae/verify, on the files in git and in data/; nothing else changes. Files that
differ are compared number by number, and changed parameters, code, processor and package versions are listed. The
exit code is 1 if the verdict is "different".

example:
  convae verify
""",
    "lineage": """examples:
  convae lineage models/encoder
  convae lineage ~/Downloads/encoder
""",
}


def main() -> None:
    """Parse the command line and run one command.

    The exit code is 1, after a line on stderr, for a user's mistake; 2 for a wrong command line; 130 for Ctrl-C.
    """
    survive_any_encoding()
    # With Python's default, garbage collections that find nothing take a sixth of the imports' time.
    gc.set_threshold(100_000)
    parser, names = _parser()
    if len(sys.argv) > 1 and not sys.argv[1].startswith("-") and sys.argv[1] not in names:
        nearest = get_close_matches(sys.argv[1], names, n=1)
        advice = f"did you mean '{nearest[0]}'?" if nearest else f"the commands are {', '.join(names)}"
        parser.error(f"no command '{sys.argv[1]}'; {advice}")
    arguments = parser.parse_args()
    module, _, function = vars(arguments).pop("command").partition(":")
    try:
        # Imported only now: `--help` appears at once because it loads neither torch nor MLflow.
        with finished_bars():
            getattr(import_module(f"convae.{module}"), function)(**vars(arguments))
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as `head`, has closed the pipe
        # Python flushes stdout once more at exit, which would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        print("convae: interrupted", file=sys.stderr)
        sys.exit(130)
    except ModuleNotFoundError as error:  # the pipeline's packages are an optional extra
        sys.exit(f"convae: {error}; install convae[pipeline]")
    except ConvaeError as error:
        sys.exit(f"convae: {error}")
    except OSError as error:  # most often an output that can't be written
        sys.exit(f"convae: {error.filename}: {error.strerror}" if error.filename else f"convae: {error}")


def _parser() -> tuple[argparse.ArgumentParser, list[str]]:
    """Build the parser; return it with the names of all commands."""
    parser = argparse.ArgumentParser(
        prog="convae",
        description="Convolutional autoencoders: features learned without labels.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"convae {__version__}")
    commands = parser.add_subparsers(metavar="command", required=True)
    _add_picture_commands(commands)
    _add_encoder_commands(commands)
    _add_mlflow_commands(commands)
    _add_experiment_commands(commands)
    return parser, list(commands.choices)


def _add_picture_commands(commands: Commands) -> None:
    check = _add(commands, "check", "checking:check", "look at pictures or arrays before the pipeline runs on them")
    check.add_argument("root", type=Path, metavar="ROOT", help="a folder of pictures, or arrays; becomes data.root")
    text = "a CSV or Parquet file in ROOT that lists the pictures, see docs/images.md"
    check.add_argument("--table", metavar="FILE", help=text)
    text = "images of one group stay together: a regular expression for file names, with the group in parentheses"
    check.add_argument("--group", metavar="PATTERN", help=text)
    check.add_argument("--json", action="store_true", dest="as_json", help="print an object, not text")
    check.add_argument("--write", action="store_true", help="write the suggested parameters to params.yaml")

    features = _add(commands, "features", "commands:write_features", "compute the features of pictures")
    _add_files(features, "FILE", ".parquet or .npy")
    text = "write the compact code, a few numbers per picture, instead of the features"
    features.add_argument("--code", action="store_true", help=text)

    classify = _add(commands, "classify", "commands:classify", "predict the class of each picture")
    _add_images(classify)
    text = f"a folder with encoder/ and classifier/, or {ELSEWHERE} (default: %(default)s)"
    classify.add_argument("--model", default="models", metavar="FOLDER", help=text)
    classify.add_argument("--json", action="store_true", dest="as_json", help="print a list of objects, not lines")

    _add_comparing_commands(commands)

    text = "show the encoder's input next to its reconstruction"
    reconstruct = _add(commands, "reconstruct", "commands:reconstruct", text)
    _add_files(reconstruct, "FOLDER", "where to write the PNG files")


def _add_comparing_commands(commands: Commands) -> None:
    similar = _add(
        commands,
        "similar",
        "comparing:similar",
        "find the pictures in a folder that are most similar to the given ones",
    )
    _add_images(similar)
    similar.add_argument("folder", metavar="FOLDER", help="the pictures to search")
    similar.add_argument("-k", type=int, default=5, metavar="N", help="how many to print (default: %(default)s)")
    _add_encoder(similar)
    anomalies = _add(commands, "anomalies", "comparing:anomalies", "print how unusual pictures are, worst first")
    _add_images(anomalies)
    text = "a folder or archive with encoder/ and reference/ as the stage evaluate writes it (default: %(default)s)"
    anomalies.add_argument("--model", default="models", metavar="FOLDER", help=text)
    anomalies.add_argument(
        "--threshold", type=float, metavar="SCORE", help="print only pictures with this score or more"
    )
    for parser in (similar, anomalies):
        parser.add_argument(
            "--sheet", type=Path, metavar="FILE", help="also draw up to 60 of the pictures into a PNG file"
        )
        parser.add_argument("--json", action="store_true", dest="as_json", help="print a list of objects, not lines")
        _add_force(parser)


def _add_encoder_commands(commands: Commands) -> None:
    export = _add(commands, "export", "export:export_onnx", "write an encoder and its readout as an ONNX file")
    _add_encoder(export)
    export.add_argument("--onnx", type=Path, required=True, metavar="FILE", dest="output", help="the file to write")
    text = "accept images of any size (not possible if the readout pools maxima)"
    export.add_argument("--any-size", action="store_true", help=text)
    _add_force(export)

    info = _add(commands, "info", "commands:print_info", "describe an encoder: layers, training data, accuracy")
    info.add_argument("source", nargs="?", metavar="ENCODER", help=f"a folder, or {ELSEWHERE}")


def _add_mlflow_commands(commands: Commands) -> None:
    text = "add encoder and classifier to MLflow's model registry"
    publish = _add(commands, "publish", "tracking.registry:publish", text)
    text = "a folder with encoder/ and classifier/ (default: %(default)s)"
    publish.add_argument("--model", type=Path, default=Path("models"), metavar="FOLDER", dest="folder", help=text)

    push = _add(commands, "push", "hub:push", "upload encoder and classifier to the Hugging Face Hub")
    push.add_argument("address", metavar="ADDRESS", help="hf://owner/name")
    push.add_argument("--model", type=Path, default=Path("models"), metavar="FOLDER", dest="folder", help=text)

    ui = _add(commands, "ui", "tracking.ui:open_ui", "sync, then serve MLflow's user interface on this machine only")
    ui.add_argument("--port", type=int, default=5000, help="port to listen on (default: %(default)s)")

    text = "add runs missing from MLflow, from every dvc.lock in git"
    _add(commands, "sync", "tracking.ui:synchronise", text)


def _add_experiment_commands(commands: Commands) -> None:
    text = "vary the parameters that a file lists, and find the best validation accuracy"
    search = _add(commands, "search", "search.worker:search", text)
    search.add_argument("path", type=Path, metavar="FILE", help="what to vary, such as search.yaml")

    text = "rerun the pipeline in a scratch folder, and compare every result with dvc.lock"
    _add(commands, "verify", "history.verify:verify", text)

    lineage = _add(commands, "lineage", "tracking.ui:print_lineage", "trace a stage's output back to its origin")
    lineage.add_argument("path", type=Path, help="a file or folder such as models/encoder, or a copy of it")


def _add(commands: Commands, name: str, command: str, text: str) -> argparse.ArgumentParser:
    """Add a command that runs `command`, a `module:function` of this package."""
    parser = commands.add_parser(
        name,
        help=text,
        description=f"{text[0].upper()}{text[1:]}.",
        epilog=DETAILS.get(name),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=command)
    return parser


def _add_files(parser: argparse.ArgumentParser, metavar: str, written: str) -> None:
    """Add the arguments of a command that turns pictures into files."""
    _add_images(parser)
    _add_encoder(parser)
    text = "don't resize; features are comparable only between pictures of the training images' size"
    parser.add_argument("--original-size", action="store_false", dest="resize", help=text)
    parser.add_argument("-o", "--output", type=Path, required=True, metavar=metavar, help=written)
    _add_force(parser)


def _add_images(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", nargs="+", metavar="IMAGES", help="files, folders, patterns, or - (see below)")
    text = "where to compute: auto (a CUDA GPU if there is one), cpu, cuda, cuda:1, mps (default: %(default)s)"
    parser.add_argument("--device", default="auto", metavar="NAME", help=text)


def _add_encoder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--encoder",
        default="models/encoder",
        metavar="FOLDER",
        help=f"a folder, or {ELSEWHERE} (default: %(default)s)",
    )


def _add_force(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--force", action="store_true", help="overwrite existing files")


if __name__ == "__main__":
    main()
