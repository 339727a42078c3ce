"""Every test here has the pretend device; tests/test_on_device.py runs them in processes of their own."""

import tomllib
from pathlib import Path

import pretend

TABLE = tomllib.loads((Path(__file__).parent.parent / "host_syncs.toml").read_text())
pretend.start(TABLE["kernels"])
