"""The stages of dvc.yaml, one script each.

For an experiment, DVC runs them in a copy of the repository, but the installed package is that of the original. The
copy's sources therefore come first on the path. Slow imports are in `main`, so that they run while the recorder starts.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))
