"""The ladder: every system on the same images, splits, readout and classifier. It is a separate DVC project."""

import pipeline  # noqa: F401  puts this checkout's sources first
