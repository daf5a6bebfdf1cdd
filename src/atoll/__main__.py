"""``python -m atoll``."""

from __future__ import annotations

from atoll.cli.entry import main

if __name__ == "__main__":
    main()
