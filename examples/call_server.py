"""Send pictures to a served classifier and print their labels and probabilities.

    convae publish
    mlflow models serve -m models:/convae-classifier@champion --env-manager local --port 5001
    python examples/call_server.py photo.png more/*.jpg --url http://127.0.0.1:5001

Needs only Python: a caller does not need this package.
"""

import argparse
import json
import sys
from base64 import b64encode
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

PICTURES = 32  # of a request


def classify(files: list[Path], url: str) -> list[dict[str, str | float]]:
    """Return the label and the score of each class for each picture."""
    body = json.dumps({"inputs": [b64encode(file.read_bytes()).decode() for file in files]}).encode()
    request = Request(f"{url}/invocations", body, {"Content-Type": "application/json"})
    with urlopen(request, timeout=60) as answer:
        return json.load(answer)["predictions"]


def main(files: list[Path], url: str) -> None:
    """Print a line for each picture: its name, its label and the score of that class."""
    for start in range(0, len(files), PICTURES):
        batch = files[start : start + PICTURES]
        try:
            rows = classify(batch, url)
        except HTTPError as error:  # status 400: a line says which picture is bad, and why
            sys.exit(f"{batch[0]} and {len(batch) - 1} more: {json.load(error)['message']}")
        except URLError as error:
            sys.exit(f"{url}: {error.reason}")
        for file, row in zip(batch, rows, strict=True):
            label = row.pop("label")
            print(f"{file}  {label}  {max(row.values()):.3f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Send pictures to a served classifier.")
    parser.add_argument("files", type=Path, nargs="+", help="PNG, JPEG, WebP, BMP or TIFF files")
    parser.add_argument("--url", default="http://127.0.0.1:5001", help="of the server (default: %(default)s)")
    main(**vars(parser.parse_args()))
