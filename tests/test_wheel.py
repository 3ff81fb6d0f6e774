"""The built wheel with only the packages that it requires."""

import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions
from pathlib import Path

import numpy as np
import pytest
from helpers import REPOSITORY
from PIL import Image
from test_commands import models  # noqa: F401, a fixture

# Refuses imports that none of the wheel's requirements provides.
GUARD = """\
import sys
ALLOWED = set({allowed!r})
class Guard:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top in {foreign!r} and top not in ALLOWED:
            raise ModuleNotFoundError(f"{{name}} is no requirement of the wheel", name=name)
sys.meta_path.insert(0, Guard())
"""

# The last `ignore` is needed only if mypy sees the types of the wheel: otherwise, `strict` calls it unused.
USER = """\
import numpy as np
from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped]
from sklearn.pipeline import make_pipeline  # type: ignore[import-untyped]

from convae import CAEFeatures, ConvaeError, load_encoder, load_image_classifier

images: np.ndarray = np.load("images.npy")
try:
    features: np.ndarray = load_encoder("models/encoder").features(images, code=True)
    names: list[str] = load_image_classifier("models").predict(["photo.png"])
except ConvaeError as error:
    raise SystemExit(str(error)) from None
make_pipeline(CAEFeatures("models/encoder", code=True), LogisticRegression()).fit(images, names)
load_encoder("models/encoder").features(images, code="yes")  # type: ignore[arg-type]
"""
# Types of other packages than NumPy are not looked at, which saves a minute.
MYPY = """\
[mypy]
strict = true
follow_imports = skip
[mypy-convae.*]
follow_imports = silent
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A folder with the unpacked wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # building leaves files behind
    shutil.copytree(REPOSITORY / "src/convae", source / "src/convae", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source / name)
    pip = [sys.executable, "-m", "pip", "--quiet"]
    options = ["--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", *options, "--wheel-dir", folder, source], check=True)
    (built,) = folder.glob("convae-*.whl")
    subprocess.run([*pip, "install", *options, "--target", folder / "installed", built], check=True)
    return folder / "installed"


def requirements(name: str, found: set[str]) -> set[str]:
    """Distributions that this one requires, without extras."""
    for requirement in distribution(name).requires or []:
        other = re.split(r"[^\w.-]", requirement)[0].lower()
        if "extra ==" in requirement or other in found:
            continue
        try:
            found.add(other)
            requirements(other, found)
        except PackageNotFoundError:  # of another platform
            found.discard(other)
    return found


def modules(distributions: set[str]) -> list[str]:
    """Names of the modules in these distributions."""
    known = {re.sub(r"[-_.]+", "-", name) for name in distributions}
    return [
        module
        for module, names in packages_distributions().items()
        if any(re.sub(r"[-_.]+", "-", name.lower()) in known for name in names)
    ]


@pytest.mark.slow
def test_the_wheel_encodes_and_classifies(wheel, models):  # noqa: F811
    """Features, classes and an estimator without DVC, MLflow, Lightning, pandas or pydantic."""
    sys.path.insert(0, str(wheel))
    try:
        allowed = modules(requirements("convae", set()))
    finally:
        sys.path.remove(str(wheel))
    assert "torch" in allowed
    assert not {"dvc", "mlflow", "pytorch_lightning", "pandas", "pydantic", "pyarrow"} & set(allowed)
    (models / "guard").mkdir()
    guard = GUARD.format(allowed=[*allowed, "convae"], foreign=sorted(packages_distributions()))
    (models / "guard/sitecustomize.py").write_text(guard)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(models / "guard"), str(wheel)])}

    def run(*command):
        done = subprocess.run(
            [sys.executable, *command], cwd=models, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = run("-c", "import convae; print(convae.__file__)")
    assert Path(where.strip()).is_relative_to(wheel)
    assert (wheel / "convae/default.yaml").is_file()  # for `Params.default`
    lines = run("-m", "convae.cli", "classify", "pictures").splitlines()
    assert len(lines) == 10
    run("-m", "convae.cli", "features", "pictures", "-o", "f.npy")
    run("-m", "convae.cli", "info", "models/encoder")
    code = "import convae, sys; print(convae.CAEFeatures('models/encoder').fit_transform(sys.argv[1:]).shape)"
    Image.fromarray(np.zeros((9, 9), np.uint8)).save("black.png")
    assert run("-c", code, "black.png").strip() == "(1, 32)"
    refused = subprocess.run(
        [sys.executable, "-c", "import mlflow"], env=environment, capture_output=True, text=True, check=False
    )
    assert "is no requirement of the wheel" in refused.stderr  # the guard works


def test_a_users_code_passes_strict_type_checks(wheel, tmp_path):
    pytest.importorskip("mypy")
    (tmp_path / "user.py").write_text(USER)
    (tmp_path / "mypy.ini").write_text(MYPY)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--cache-dir", os.devnull, "user.py"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(wheel)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (wheel / "convae/py.typed").is_file()  # mypy might have found that of the repository
