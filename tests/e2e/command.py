"""The installed command, and what it says when it fails."""

import re
import sys
from pathlib import Path

COMMAND = str(Path(sys.executable).parent / "atoll")


def assert_error(done, code, fragment=""):
    """It failed with one error of this code, and said what to do."""
    text = done.stderr.decode()
    assert "Traceback" not in text
    assert done.returncode not in {0, None}, done
    found = re.search(r"^error\[([\w.]+)\]: (.+)$", text, re.MULTILINE)
    assert found, text
    assert found[1] == code, text
    assert fragment in text, text
    assert re.search(r"^hint: .+$", text, re.MULTILINE), text
