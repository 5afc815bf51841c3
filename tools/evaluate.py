#!/usr/bin/env python3
"""The same as `sparsereco evaluate`, from a checkout."""

from __future__ import annotations

import sys

from sparsereco import cli
from sparsereco.commands.evaluate import run

if __name__ == "__main__":
    sys.exit(cli.main(run))
