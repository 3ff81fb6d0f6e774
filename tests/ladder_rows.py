"""Rows as those of reports/ladder.json, made up."""

import numpy as np

# system, objective, accuracy, dimension, parameters, seeds, what else its rows say
SYSTEMS = [
    ("pixels", "none", 0.846, 784, 0, 1, {}),
    ("pca", "none", 0.842, 256, 0, 1, {}),
    ("filter_bank", "none", 0.884, 6272, 3200, 1, {}),
    ("default", "reconstruct", 0.9241, 6272, 3200, 5, {}),
    ("default_untrained", "none", 0.9052, 6272, 3200, 5, {"control_of": "default", "control": "untrained twin"}),
    (
        "default_unwhitened",
        "none",
        0.897,
        6272,
        3200,
        5,
        {"control_of": "default", "control": "twin without whitening"},
    ),
    ("default_patches", "none", 0.9150, 6272, 3200, 5, {"control_of": "default", "control": "random patches"}),
    ("random_filters", "none", 0.891, 1568, 320, 3, {}),
    ("random_patches", "none", 0.908, 6272, 3200, 3, {}),
    ("kmeans", "none", 0.9165, 6272, 3200, 3, {}),
    ("dense_autoencoder", "reconstruct", 0.861, 512, 401920, 3, {}),
    ("seed_cae", "reconstruct", 0.884, 1568, 320, 3, {"note": "10 epochs instead of 150"}),
    ("seed_cae_l2", "reconstruct", 0.881, 1568, 320, 3, {"note": "10 epochs instead of 150"}),
    ("stacked_cae", "reconstruct", 0.902, 3136, 24800, 3, {}),
    ("stacked_cae_greedy", "reconstruct", 0.899, 3136, 24800, 3, {}),
    ("stacked_cae_end_to_end", "reconstruct", 0.901, 3136, 24800, 3, {}),
    ("stacked_reconstruction_cae", "reconstruct", 0.872, 441, 6300, 3, {}),
    ("denoising_cae", "reconstruct", 0.905, 6272, 3200, 3, {}),
    ("masked_cae", "reconstruct", 0.9035, 6272, 3200, 3, {}),
    ("wta_cae", "reconstruct", 0.911, 6272, 3200, 3, {}),
    ("supervised_cnn", "classify", 0.9335, 6272, 3200, 3, {"initialized_by": "default_untrained"}),
    ("finetuned_cnn", "classify", 0.9382, 6272, 3200, 3, {"initialized_by": "default"}),
]
CURVES = ("default", "default_untrained", "default_unwhitened", "default_patches", "pixels", "supervised_cnn")
DATASETS = {
    "fashion_mnist": (0.0, 10000, "Readout: both signs, sum over a grid of 7×7 cells, to the power 0.5, standardised. "
    "Classifier: logistic regression on 54000 training images, its settings chosen on 6000 validation images."),
    "digits": (0.055, 360, "Readout: the same over a grid of 4×4 cells. Classifier: logistic regression on 1293 "
    "training images, its settings chosen on 144 validation images."),
}  # fmt: skip


def ladder_rows():
    """22 systems with 1 to 5 seeds on two data sets; curves for some, and for the first seed the whole of them."""
    generator = np.random.default_rng(0)
    rows = []
    for dataset, (shift, images, protocol) in DATASETS.items():
        for system, objective, mean, dimension, parameters, seeds, more in SYSTEMS:
            for seed in range(seeds):
                accuracy = round(mean + shift + 0.0012 * generator.normal(), 6)
                curves = system in CURVES
                counts = (1, 10, 100, 1000) if seed == 0 else (1, 10)
                rows.append(
                    {
                        "dataset": dataset,
                        "system": system,
                        "seed": seed,
                        "objective": objective,
                        **dict.fromkeys(("control_of", "control", "initialized_by", "note")),
                        **more,
                        "test_accuracy": accuracy,
                        "validation_accuracy": accuracy,
                        "knn_accuracy": round(accuracy - 0.04, 6),
                        "test_images": images,
                        "dimension": dimension,
                        "encoder_parameters": parameters,
                        "protocol": protocol,
                        "training_seconds": 20.0 + seed if objective != "none" else None,
                        "extraction_seconds": 40.0,
                        "by_dimension": [
                            {"dimension": size, "test_accuracy": accuracy - 0.02 * np.log2(dimension / size) ** 0.7}
                            for size in sorted({min(size, dimension) for size in (64, 128, 256, dimension)})
                        ],
                        "by_labels": [
                            {
                                "labels_per_class": count,
                                "draw": draw,
                                "test_accuracy": accuracy
                                - 0.11 * (3.5 - np.log10(count)) * (1.1 if objective == "classify" else 0.95)
                                + 0.03 * generator.normal() / count**0.3,
                            }
                            for count in counts
                            for draw in range(5)
                        ]
                        if curves
                        else None,
                    }
                )
    return rows
