"""glibc keeps freed buffers: batches of the same shapes stop faulting pages in."""

import subprocess
import sys

import pytest

BODY = """
import ctypes, resource, sys
from saelab.run.memory import keep_pages
print(keep_pages())
libc = ctypes.CDLL("libc.so.6")
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
def batch():  # a buffer of 32 MB, written, and given back
    place = libc.malloc(32 << 20)
    ctypes.memset(place, 1, 32 << 20)
    libc.free(place)
batch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    batch()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a setting of glibc")
def test_pages_are_kept_unless_the_environment_says_otherwise(monkeypatch):
    faults = {}
    for setting in ("", "system"):
        monkeypatch.setenv("SAELAB_MALLOC", setting)
        done = subprocess.run([sys.executable, "-c", BODY], capture_output=True, text=True, check=True)
        kept, count = done.stdout.split()
        if setting == "" and kept == "False":
            pytest.skip("another C library")
        assert (kept == "True") == (setting == "")
        faults[setting] = int(count)
    assert faults[""] < 100 and faults["system"] > 10 * 100  # of 8192 pages a batch
