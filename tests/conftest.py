"""Settings for every test: what is drawn is drawn alike each time, and no clock decides.

Hypothesis draws the same examples in each run (profile ``fixed``), so that a failure of `make test` is a failure of
the code, for everybody. `make test-all` draws new ones (``--hypothesis-profile drawn``) and prints how to draw them
again. What is drawn outside of hypothesis begins each test at the same seeds.
"""

import gc
import os
import random
import tempfile
from collections import defaultdict

import numpy as np
import pretended_device
import pytest
import torch
from hypothesis import HealthCheck, settings
from PIL import Image

if not torch.cuda.is_available() and pretended_device.ABLE:
    pretended_device.register()  # before any backward pass
# Ultralytics downloads and installs nothing, and writes its settings where no user has theirs.
os.environ |= {"YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false", "YOLO_VERBOSE": "false"}
os.environ.setdefault("YOLO_CONFIG_DIR", tempfile.mkdtemp(prefix="ultralytics-"))
torch.set_num_threads(1)  # workers do not fight over cores
# A machine that is busy makes examples slow: that is no failure.
_PRINTED, _OPENED = np.get_printoptions(), Image.open
no_clock = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("fixed", derandomize=True, **no_clock)
settings.register_profile("drawn", print_blob=True, **no_clock)
settings.load_profile("fixed")  # an option of the command line is read later

collect_ignore_glob = ["*/conftest.py"]  # they hold no examples, and as modules they would all have one name


def pytest_collection_finish(session):
    """What is imported stays: the garbage collector need not walk through it again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Of a test under ``@pytest.mark.few(n)`` as many cases, spread evenly, stay quick; the others are breadth."""
    cases = defaultdict(list)
    for item in items:
        if item.get_closest_marker("few") and not any(map(item.get_closest_marker, ("slow", "breadth"))):
            cases[item.fspath, item.originalname].append(item)
    for group in cases.values():
        (count,) = group[0].get_closest_marker("few").args
        kept = {place * len(group) // count for place in range(count)}
        for place, item in enumerate(group):
            if place not in kept:
                item.add_marker(pytest.mark.breadth)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Before any fixture, those of modules too: what a test draws does not depend on the tests before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    # Ultralytics has the whole process print arrays and open images its own way.
    np.set_printoptions(**_PRINTED)
    torch.set_printoptions(profile="default")
    Image.open = _OPENED
