import base64
import re
from html.parser import HTMLParser

import pytest
import sklearn
from helpers import chromium, needs_chromium

from convae.datasets.image_set import ImageSet
from convae.files import read_json, write_json

LEARNED = ["filters", "activation_maps", "reconstructions", "learning_curves"]
SPACE = ["embedding", "embedding_pictures", "neighbors", "strangest"]
ALL = [*LEARNED, *SPACE, "confusion_matrix", "mistakes"]


class Page(HTMLParser):
    """A page's text, its tags, and everything that a browser would load."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.sources, self.text = set(), [], []
        self.ids, self.links = set(), []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.sources += [
            value for name, value in attrs if name in ("src", "href", "srcset", "data") and value[0] != "#"
        ]
        self.ids |= {value for name, value in attrs if name == "id"}
        self.links += [value[1:] for name, value in attrs if name == "href" and value[0] == "#"]

    def handle_data(self, data):
        self.text.append(data)


def read(folder):
    return (folder / "report.html").read_text("utf-8")


def figures(folder):
    return sorted(path.stem for path in (folder / "figures").iterdir())


def test_two_runs_write_the_same_bytes(evaluated):
    experiment = evaluated()
    first, second = experiment.write("first"), experiment.write("second")
    assert read(first) == read(second)
    assert set(figures(first)) == set(ALL)
    for name in figures(first):
        assert (first / f"figures/{name}.png").read_bytes() == (second / f"figures/{name}.png").read_bytes()


def test_the_page_loads_nothing_and_shows_the_figures_of_the_folder(evaluated):
    experiment = evaluated()
    folder = experiment.write()
    page = Page(read(folder))
    assert not page.tags & {"script", "link", "iframe", "object", "base"}
    assert not re.search(r"(https?:)?//\w", re.sub(r"base64,[\w+/=]+", "", read(folder)))
    assert "@import" not in read(folder)
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    contents = [base64.b64decode(source.partition(",")[2]) for source in page.sources]
    assert contents == [(folder / f"figures/{name}.png").read_bytes() for name in ALL]


@pytest.mark.parametrize("labelled", [True, False])
def test_the_contents_lead_to_every_section_and_figure(evaluated, labelled):
    folder = evaluated(labelled=labelled).write()
    page = Page(read(folder))
    assert len(page.links) == len(set(page.links)) > len(figures(folder))
    assert set(page.links) <= page.ids
    assert set(figures(folder)) <= set(page.links)


def test_page_and_figures_contain_no_path_or_time(evaluated):
    experiment = evaluated(data={"dataset": "digits", "root": "/home/somebody/pictures"})
    folder = experiment.write()
    assert str(experiment.root) not in read(folder)
    assert "/home/somebody" not in read(folder)
    for file in (folder / "figures").iterdir():
        chunks = re.findall(rb"tEXt|iTXt|zTXt|tIME", file.read_bytes()[:200])
        assert chunks == []


def test_names_of_classes_and_files_are_escaped(evaluated, change_description):
    name = "<script>alert(1)</script>"
    experiment = evaluated(classes=[name, "$\\frac{1}$", "a,b\"'", "NA"])
    change_description(rejected=[{"path": "<img src=x onerror=alert(2)>.png", "reason": "<b>empty</b>"}])
    folder = experiment.write()
    page = Page(read(folder))
    assert "script" not in page.tags
    assert "b" not in page.tags
    assert all(source.startswith("data:") for source in page.sources)
    for text in (name, "$\\frac{1}$", "a,b\"'", "NA", "<b>empty</b>", "<img src=x onerror=alert(2)>.png"):
        assert text in "".join(page.text)


def test_numbers_parameters_and_versions_are_shown(evaluated):
    experiment = evaluated()
    text = "".join(Page(read(experiment.write())).text)
    metrics = read_json(experiment.root / "reports/metrics.json")
    for name in ("accuracy", "accuracy_low", "accuracy_high"):
        assert f"{100 * metrics['test'][name]:.2f} %" in text
    for shown in (
        "95 % interval",
        "learning_rate",
        ", ".join(str(value) for value in experiment.params.classifier.logistic_regression.C),
        f"scikit-learn {sklearn.__version__}",
        ImageSet.load(experiment.root / "prepared/train").sha256,
    ):
        assert shown in text
    assert "ridge.alpha" not in text
    assert "tracking" not in text


def test_without_labels_there_is_no_accuracy(evaluated):
    folder = evaluated(labelled=False).write()
    text = "".join(Page(read(folder)).text).partition("What was run")[0]
    assert "The images have no labels" in text
    assert "accuracy" not in text.replace("no accuracy", "")
    assert set(figures(folder)) == {*LEARNED, *SPACE}


def test_an_untrained_encoder_is_labelled_as_such(evaluated):
    folder = evaluated(objective={"kind": "none", "sparsity": None}, history="").write()
    text = "".join(Page(read(folder)).text)
    assert "The encoder was not trained" in text
    assert "Reconstruction error" not in text
    assert "learning_curves" not in figures(folder)


def test_copies_are_shown_before_the_numbers_and_their_absence_in_the_notes(evaluated, change_description):
    experiment = evaluated()
    page = read(experiment.write())
    assert "No test or validation image is an exact duplicate of an image in another part." in page
    assert "None of 6 test and 6 validation images that were compared looks like a copy" in page
    none = {"images": 0, "parts": {"train": 0}, "examples": []}
    some = {"images": 1, "parts": {"validation": 0, "train": 1}, "examples": [[0, "train", 0]]}
    change_description(duplicates={"test": some, "validation": none})
    page = read(experiment.write())
    assert page.index("pixel for pixel: 1 of 6 (1 in training)") < page.index("<h2>Numbers")
    assert "No test or validation image" not in page


def test_the_accuracy_is_shown_with_baselines(evaluated):
    experiment = evaluated(classes=["cat", "<dog>"])
    text = "".join(Page(read(experiment.write())).text)
    test = read_json(experiment.root / "reports/metrics.json")["test"]
    assert f"lowest recall {100 * test['worst_recall']:.2f} %: {test['worst_class']}" in text
    for name in ("majority_accuracy", "balanced_accuracy"):
        assert text.count(f"{100 * test[name]:.2f} %") >= 2  # on top and in the table


@pytest.mark.parametrize("figure", ["accuracy", "balanced_accuracy", "macro_f1"])
def test_settings_are_shown_with_the_metric_that_selected_them(evaluated, figure):
    experiment = evaluated(classifier={"select_by": figure, "class_weight": "balanced"})
    text = "".join(Page(read(experiment.write())).text)
    assert f"validation {figure.replace('_', ' ').replace('f1', 'F1')}converged" in text
    described = read_json(experiment.root / "classifier/classifier.json")
    assert f"{100 * described['candidates'][0][f'validation_{figure}']:.2f} %" in text
    assert "classes weighted so that each counts as much" in text


@pytest.mark.parametrize("kind", ["linear_svm", "k_nearest_neighbors", "mlp"])
def test_any_classifier_can_be_reported(evaluated, kind):
    settings = {"n_neighbors": [1, 2]} if kind == "k_nearest_neighbors" else None
    experiment = evaluated(classifier={"kind": kind, **({kind: settings} if settings else {})})
    text = "".join(Page(read(experiment.write())).text)
    assert kind.replace("_", " ").capitalize() in text
    assert ("log loss" in text) == (kind != "linear_svm")


@pytest.mark.parametrize(("shape", "count"), [((3, 12, 20), 100), ((1, 20, 9), 3)])
def test_colour_and_oblong_images_and_a_hundred_classes(evaluated, shape, count):
    folder = evaluated(shape=shape, classes=[f"kind {index}" for index in range(count)]).write()
    assert {"confusion_matrix", "filters"} <= set(figures(folder))
    assert f"kind {count - 1}" in read(folder)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("layers", [1, 0])
def test_principal_components_of_patches_are_reported(evaluated, channels, layers):
    experiment = evaluated(
        shape=(channels, 8, 8),
        model={"layers": [{"filters": 4, "kernel": (3, 3)}] * layers},
        preprocessing={"whitening": {"kind": "pca", "window": 3, "epsilon": 0.1}},
        objective={"kind": "none", "sparsity": None},
        history="",
    )
    folder = experiment.write()
    assert "reconstructions" in figures(folder)


def test_each_layer_has_its_activation_maps(evaluated):
    layers = [
        {"filters": 4, "kernel": (3, 3), "pool": {"kind": "max", "size": (2, 2)}},
        {"filters": 300, "kernel": (3, 3), "padding": "full"},
    ]
    folder = evaluated(model={"layers": layers}).write()
    assert {"activation_maps_1", "activation_maps_2"} <= set(figures(folder))


def test_figures_of_an_earlier_run_are_removed(evaluated):
    experiment = evaluated()
    (experiment.root / "reports/figures").mkdir()
    (experiment.root / "reports/figures/old.png").touch()
    assert "old" not in figures(experiment.write())


@pytest.fixture
def health_of(tmp_path):
    """`health_of(experiment, copying=...)`: the text of the report with these keys of the metrics' `health` changed."""

    def text_of(experiment, **changes):
        path = tmp_path / "reports/metrics.json"
        metrics = read_json(path)
        write_json(path, metrics | {"health": metrics["health"] | changes})
        text = " ".join(" ".join(Page(read(experiment.write("changed"))).text).split())
        return text[text.rindex("Encoder health") : text.rindex("What the encoder learned")]

    return text_of


def layer_of(**changes):
    return {"filters": 64, "dead": 0, "duplicates": 0, "hoyer_sparsity": 0.25, "border_ratio": 0.5} | changes


@pytest.mark.parametrize(
    ("layers", "verdict"),
    [
        ([layer_of()], "No filter is dead, none is a duplicate."),
        ([layer_of(duplicates=2)], "No filter is dead, 2 of 64 are duplicates."),
        ([layer_of(dead=1), layer_of(duplicates=1)], "1 of 128 filters is dead, 1 of 128 is a duplicate."),
        ([layer_of(dead=64, hoyer_sparsity=None, border_ratio=None)], "64 of 64 filters are dead"),
        ([], "The encoder has no layers and so no filters"),
    ],
)
def test_dead_and_duplicate_filters_are_reported(evaluated, health_of, layers, verdict):
    assert verdict in health_of(evaluated(), filters=layers)


def test_a_low_error_is_compared_with_random_filters(evaluated, health_of):
    errors = {"reconstruction_mse": 0.08, "twin_reconstruction_mse": 0.12, "baseline_mse": 0.5}
    assert "an error of 0.1200, this one with 0.0800" in health_of(evaluated(), copying=errors)


def test_concerns_come_before_the_numbers(evaluated, health_of, tmp_path):
    experiment = evaluated()
    health_of(experiment, copying=None, filters=[layer_of()], effective_rank=50.0)
    assert 'class="note"' not in (tmp_path / "changed/report.html").read_text()
    errors = {"reconstruction_mse": 0.08, "twin_reconstruction_mse": 0.08, "baseline_mse": 0.5}
    health_of(experiment, copying=errors)
    page = (tmp_path / "changed/report.html").read_text()
    assert page.index("says nothing about the filters") < page.index("<h2>Numbers")


def test_health_is_shown_without_decoder_and_without_labels(evaluated, health_of):
    text = health_of(evaluated(labelled=False, objective={"kind": "none", "sparsity": None}))
    assert "The encoder has no image decoder" in text
    assert "The effective rank of the features is" in text
    assert "random" not in text


def test_parameters_of_the_first_layer_are_compared_with_a_dense_one(evaluated, health_of):
    text = health_of(evaluated(shape=(3, 12, 16)))
    assert "this encoder 112 112 dense layer 2 308 9 220" in text  # 4 filters 3×3×3
    layer = {"filters": 5, "kernel": (8, 8), "padding": "valid"}
    text = health_of(evaluated(model={"layers": [layer]}, objective={"sparsity": None}, features={"grid": (1, 1)}))
    assert "The first kernel is as large as the image: this is the dense layer" in text
    assert "this encoder 325 1 285" in text
    assert "convolution" not in text


def test_layers_that_read_windows_are_reported_with_code_and_linear_reconstructions(evaluated, health_of, shipped):
    params = shipped()
    layers = [layer.model_dump() for layer in params.model.layers]
    experiment = evaluated(
        model={"layers": layers},
        objective={"sparsity": None},
        preprocessing={"local_contrast": None, "whitening": None},
        train={"places": 8, "order": "greedy"},
        features={"code": params.features.code.model_dump() | {"components": 4}},
    )
    folder = experiment.write()
    assert {"filters", "responses_2", "activation_maps_2", "reconstructions"} <= set(figures(folder))
    text = " ".join(" ".join(Page(read(folder)).text).split())
    metrics = read_json(experiment.root / "reports/metrics.json")
    assert "test accuracy with 4 numbers per image" in text
    assert f"compact code 4 {100 * metrics['code']['accuracy']:.2f} %" in text
    assert f"{metrics['code']['linear_reconstruction_mse']:.4f} from the compact code (4 numbers)" in text
    assert "Linear reconstructions" in text
    assert "this encoder 54 54 dense layer" in health_of(experiment)  # 6 filters of 3×3 windows, no biases


def test_the_report_says_that_the_classifier_reads_the_code(evaluated):
    code = {"kind": "pca", "components": 4, "corruption": None, "ridge": 0.1, "scale": "equal"}
    experiment = evaluated(features={"code": code}, classifier={"reads": "code"})
    text = " ".join(" ".join(Page(read(experiment.write())).text).split())
    metrics = read_json(experiment.root / "reports/metrics.json")
    assert "Logistic regression reads the compact code; its settings" in text
    assert f"features {metrics['features']['dimension']} – –" in text
    assert f"compact code 4 {100 * metrics['test']['accuracy']:.2f} %" in text
    assert "The classifier reads it; none reads the features." in text
    assert "training images whose codes are nearest to its own" in text
    assert "Test images whose codes are farthest" in text


@needs_chromium
@pytest.mark.slow
@pytest.mark.parametrize("width", [400, 1300, 2000])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_the_window(evaluated, width, scheme):
    folder = evaluated(classes=[f"class number {number}" for number in range(10)]).write()
    with chromium() as browser:
        window = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        window.goto((folder / "report.html").as_uri())
        assert window.evaluate("document.documentElement.scrollWidth") <= width
        assert window.evaluate("[...document.images].every(image => image.naturalWidth > 0 && image.alt)")
        assert window.evaluate(OVERLAPPING) == []
        style = "(style => [style.backgroundColor, style.color])(getComputedStyle(document.body))"
        paper, ink = (sum(map(int, re.findall(r"\d+", colour))) for colour in window.evaluate(style))
        assert (paper > ink) == (scheme == "light")


# Pairs of links, headings and captions of which one covers the other.
OVERLAPPING = """() => {
  const texts = [...document.querySelectorAll("nav a, h1, h2, h3, figcaption, dt, dd, th")];
  const boxes = texts.map(text => [text, text.getBoundingClientRect()]);
  const apart = (one, other) => one.right <= other.left + 1 || other.right <= one.left + 1 ||
    one.bottom <= other.top + 1 || other.bottom <= one.top + 1;
  return boxes.flatMap(([text, box], index) => boxes.slice(index + 1)
    .filter(([other, its]) => !text.contains(other) && !apart(box, its))
    .map(([other]) => [text.textContent, other.textContent]));
}"""
