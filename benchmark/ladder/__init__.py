"""The ladder: every system on the same images, splits, readout and classifier. A DVC project of its own."""

import pipeline  # noqa: F401  puts this checkout's sources first
