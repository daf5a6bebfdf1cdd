"""The page of the control protocol has each method with its parameters."""

from __future__ import annotations

import re
from pathlib import Path

from atoll.guest.messages import Request
from atoll.vm import messages

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "control-protocol.md"

METHODS = {
    kind.__struct_config__.tag: kind
    for kind in vars(messages).values()
    if isinstance(kind, type) and issubclass(kind, Request) and kind is not Request
}


def test_the_page_has_each_method_with_its_parameters():
    rows = re.findall(r"^\| `(vm\.[a-z.]+)` \|(.*?)\|", PAGE.read_text(), re.MULTILINE)
    assert {method for method, _ in rows} == set(METHODS)
    for method, parameters in rows:
        named = set(re.findall(r"`(\w+)`", parameters))
        assert named == set(METHODS[method].__struct_fields__), method
