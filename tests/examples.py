"""How many examples are tried of what must hold for all."""

from __future__ import annotations

import os

from hypothesis import settings

#: Of each property: other ones in each run. ``make properties`` tries many.
EXAMPLES = int(os.environ.get("EXAMPLES", "25"))


def examples(times):
    """So many times as many, where what goes wrong is rare among them."""
    return settings(max_examples=times * EXAMPLES)
