"""A task whose host fails during a step of one process, once a file with the name of the fault appears in a folder."""

import os
import time
import warnings
from functools import partial

import psutil
from custom_hosts import SINGLE, SMALL, Images, blobs
from esper_env import register_task
from torch import nn


class UnpicklableError(Exception):
    def __init__(self, first, second):
        super().__init__(f"{first} {second}")


def fail(_folder):
    raise LookupError("the layer is broken")


def fail_without_pickle(_folder):
    raise UnpicklableError("an error", "of two parts")


def hang(folder):
    (folder / "hung").write_text(str(os.getpid()))
    while True:
        time.sleep(0.05)


FAULTS = {
    "fail": fail,
    "fail_without_pickle": fail_without_pickle,
    "hang": hang,
    "warn": lambda _folder: warnings.warn("the layer creaks", UserWarning, stacklevel=2),
}


class Trigger(nn.Module):
    """Passes its input on. The first process that finds the file of a fault removes it and fails."""

    def __init__(self, inputs, folder):
        super().__init__()
        self.layer, self.folder = nn.Conv2d(inputs, 5, 1), folder

    def forward(self, x):
        for name, fault in FAULTS.items():
            try:
                (self.folder / name).unlink()
            except FileNotFoundError:
                continue
            fault(self.folder)
        return self.layer(x)


def register_faulty(folder):
    """Register and return the task, "Faulty-v0", in which every network runs on its own."""
    host = partial(Images, first=partial(Trigger, folder=folder))
    return register_task("Faulty-v0", replace=True, host=host, data=blobs(), **SMALL, **SINGLE)


def is_running(pid):
    """True if a process exists and is not a zombie."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_until(condition, seconds=120):
    """Wait for a condition that comes true at once; the limit only ends a test that would never end."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
