"""Options, fixtures and order of the suite."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

# The suite is collected with --import-mode=importlib, which leaves sys.path alone; the oracle is a sibling module.
sys.path.insert(0, str(Path(__file__).parent))

# The suite sees neither a table of costs that the user has measured nor a family that the user forces.
NO_CONFIGURATION = tempfile.TemporaryDirectory()
os.environ["XDG_CONFIG_HOME"] = NO_CONFIGURATION.name
for name in ("SONIQ_COSTS", "SONIQ_FAMILY"):
    os.environ.pop(name, None)

# GPU kernels: on a machine without a GPU they run in Triton's interpreter, which reads this before triton is imported.
os.environ.setdefault("TRITON_INTERPRET", "0" if Path("/dev/nvidiactl").exists() else "1")

from hypothesis import HealthCheck, settings

import soniq_kernels
from soniq_kernels import isa

LAST = "test_kernel_coverage.py"
# The coverage test judges the process it runs in, so these files must have run before it, whole.
KERNEL_FILES = {
    "test_gemm.py", "test_families.py", "test_conv2d.py", "test_quantize.py", "test_epilogue.py", "test_packing.py", "test_ops.py",
}  # fmt: skip

settings.register_profile("default", deadline=None, derandomize=True, max_examples=150, database=None)
settings.register_profile("full", deadline=None, max_examples=1000, suppress_health_check=[HealthCheck.too_slow])


def pytest_addoption(parser):
    """--full: full crosses instead of covering arrays (make test-all)."""
    parser.addoption("--full", action="store_true", help="full crosses where the default suite takes pairs; slow")


def pytest_configure(config):
    """Choose how many examples hypothesis tries."""
    config.stash[missing_key] = set()
    settings.load_profile("full" if config.getoption("--full") else "default")


missing_key = pytest.StashKey[set]()


def pytest_deselected(items):
    """Remember which files were not run whole."""
    for item in items:
        item.config.stash[missing_key].add(item.path.name)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config, items):
    """The kernel-coverage test runs last, and learns which files it would need but were not selected."""
    items.sort(key=lambda item: item.path.name == LAST)
    parts = {Path(arg.split("::")[0]).name for arg in config.args if "::" in arg}
    config.stash[missing_key] |= parts | (KERNEL_FILES - {item.path.name for item in items})


@pytest.fixture
def missing_files(request):
    """Kernel test files that this run leaves out, wholly or partly."""
    return sorted(KERNEL_FILES & request.config.stash[missing_key])


@pytest.fixture(params=isa.available())
def tier(request):
    """Runs the test under every tier this machine can use."""
    with isa.use(request.param):
        yield request.param


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """The suite calls small kernels a hundred thousand times; test_threads.py is where more threads than one run."""
    soniq_kernels.set_num_threads(1)


@pytest.fixture
def full(request):
    """Whether --full was given."""
    return request.config.getoption("--full")


@pytest.fixture
def rng():
    """A generator with a fixed seed."""
    return np.random.default_rng(20)
