"""The installed command."""

import sys
from pathlib import Path

COMMAND = str(Path(sys.executable).parent / "atoll")
