"""Input is never executed: rules for the sources and the lock file."""

import ast
import io
import pickle
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import REPOSITORY

from convae.datasets.catalogue import CATALOGUE
from convae.datasets.readers import read
from convae.errors import ConvaeError

SOURCES = sorted(path for folder in ("src", "pipeline", "benchmark") for path in (REPOSITORY / folder).rglob("*.py"))
# Names that can run code from a file. torchvision's readers unpickle CIFAR; see `convae.datasets.readers`.
FORBIDDEN = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "pandas.read_pickle"}


def names(tree: ast.AST) -> Iterator[str]:
    """Modules and members that are imported, and dotted names that are used."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Attribute):
            yield ast.unparse(node)


def dangers(source: str) -> list[str]:
    """Calls and imports that could run what a file holds, or unpack it anywhere."""
    tree = ast.parse(source)
    found = [name for name in names(tree) if name in FORBIDDEN or name.split(".")[0] in FORBIDDEN]
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        function = ast.unparse(call.func)
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        if (
            given.get("allow_pickle", "False") != "False"
            or (function == "torch.load" and given.get("weights_only") != "True")
            or (function.startswith("skops.io.load") and given.get("trusted") != "TRUSTED")
            or (function == "YAML" and given.get("typ") not in ("'safe'", "'rt'"))
            or given.get("shell", "False") != "False"
            or function in ("eval", "exec", "yaml.load_all", "os.system")
            # Zip files need no filter: Python keeps their members below the folder.
            or (function.endswith(".extractall") and not function.startswith("ZipFile("))
            or function.endswith((".read_pickle", ".unpack_archive"))
        ):
            found.append(ast.unparse(call))
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_no_source_executes_file_contents(path: Path) -> None:
    assert dangers(path.read_text("utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "np.load(path, allow_pickle=True)",
        "np.load(path, allow_pickle=flag)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "skops.io.loads(content, trusted=skops.io.get_untrusted_types(data=content))",
        "YAML(typ='unsafe')",
        "pd.read_pickle(path)",
        "tar.extractall(folder)",
        "shutil.unpack_archive(path)",
        "subprocess.run(command, shell=True)",
        "eval(text)",
    ],
)
def test_the_rule_detects_dangerous_calls(source: str) -> None:
    assert dangers(source)


def test_unpickling_readers_run_only_after_the_checksum() -> None:
    """One module imports torchvision, in functions that `read` calls only after the MD5 matches the catalogue."""
    ours = [path for path in SOURCES if "speed" not in path.parts]  # there the usual way reads our own pictures
    users = [path.name for path in ours if any(name.startswith("torchvision") for name in names(parsed(path)))]
    assert users == ["readers.py"]
    tree = parsed(REPOSITORY / "src/convae/datasets/readers.py")
    (read,) = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "read")
    lines = {
        call: node.lineno for node in ast.walk(read) if isinstance(node, ast.Call) for call in [ast.unparse(node.func)]
    }
    assert lines["_check_archive"] < lines["_decode"]
    assert [ast.unparse(node.test) for node in read.body if isinstance(node, ast.If)] == ["dataset.reader != 'idx'"]
    unpickled = [name for name, dataset in CATALOGUE.items() if dataset.reader.startswith("cifar")]
    assert unpickled == ["cifar10", "cifar100"]


@pytest.mark.parametrize("trust", [False, True])
@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_only_the_published_archive_is_unpickled(tmp_path: Path, name: str, trust: bool) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (tmp_path / "unpickled",)

    dataset = CATALOGUE[name]
    (archive,) = dataset.archives
    folder = "cifar-10-batches-py" if name == "cifar10" else "cifar-100-python"
    with tarfile.open(tmp_path / archive, "w:gz") as tar:
        for member in ("data_batch_1", "test_batch", "batches.meta", "train", "test", "meta"):
            content = pickle.dumps(Trap())
            entry = tarfile.TarInfo(f"{folder}/{member}")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    with pytest.raises(ConvaeError, match=f"{archive} has MD5 .{{32}}, .*it holds pickles.* data.trust does not apply"):
        list(read(dataset, {archive: tmp_path / archive}, tmp_path / "scratch", trust))
    assert [path.name for path in tmp_path.iterdir()] == [archive]


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


def test_every_dependency_is_locked_to_one_version_with_hashes() -> None:
    text = (REPOSITORY / "requirements.lock").read_text("utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    assert len(lines) > 100
    for line in lines:
        assert re.match(r"[a-z0-9][a-z0-9.-]*==[\w.+!-]+ ", line), line
        assert re.search(r"--hash=sha256:[0-9a-f]{64}( |$)", line), line


def test_the_lock_is_installed_with_its_hashes_checked() -> None:
    assert "--require-hashes -r requirements.lock" in (REPOSITORY / "Makefile").read_text("utf-8")
