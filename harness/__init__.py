"""Train, measure and tabulate non-local attention modules in one EDSR backbone."""

import os
from importlib.metadata import PackageNotFoundError, version

# Threads that spin while they wait slow a small network five-fold as soon as anything else uses
# a core; threads that sleep cost a tenth on an idle machine. It must be set before torch loads.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

try:
    __version__ = version("attention-zoo")
except PackageNotFoundError:  # run from a source tree that is not installed
    __version__ = "0+unknown"
