"""The stages of dvc.yaml, one script each.

Inside an experiment DVC runs them in a copy of the repository, while the installed package is that of the original: the
copy's own sources come first. What takes long to import is imported in `main`, while the recorder starts beside it.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))
