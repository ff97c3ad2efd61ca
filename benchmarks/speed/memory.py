"""How much memory a call takes at its peak, and how fast a GPU moves it."""

import gc
import json
import os
import tempfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.speed.timing import interleaved

# Bytes copied to measure a GPU's bandwidth: far more than its caches hold.
COPIED = 1 << 29


def peak_bytes(call: Callable[[], Any], device: torch.device) -> int:
    """
    The most bytes that were allocated at once during a call, beyond those allocated before it.

    What it returns is counted. On the CPU every allocation and release of torch is followed by its profiler, and in
    a second call those of NumPy and Python by tracemalloc; the sum of the two peaks is what they reach at most. What
    others allocate, such as a compiler's code, is not seen.

    :param call: What to follow; call it once before, so that nothing is made ready in it.
    :param device: Where it allocates.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        result = call()
        torch.cuda.synchronize(device)
        del result
        return torch.cuda.max_memory_allocated(device) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler writes on the screen that it starts and stops
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = call()
    del result
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    return _running_peak(events) + _traced_peak(call)


def _traced_peak(call: Callable[[], Any]) -> int:
    """The most bytes that NumPy and Python had allocated during a call, beyond those before it."""
    gc.collect()
    tracemalloc.start()
    try:
        result = call()
        del result
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def _running_peak(events: list[dict[str, Any]]) -> int:
    """The highest running sum of allocations and releases; releases of what is older than the trace do not count."""
    changes = sorted((e for e in events if e.get("name") == "[memory]"), key=lambda event: float(event["ts"]))
    alive: dict[int, int] = {}
    total = peak = 0
    for change in changes:
        size, address = int(change["args"]["Bytes"]), int(change["args"]["Addr"])
        if size >= 0:
            alive[address] = size
            total += size
            peak = max(peak, total)
        else:
            total -= alive.pop(address, 0)
    return peak


def copy_bandwidth(device: torch.device) -> float:
    """Bytes per second, read and written together, at which a GPU copies within its memory."""
    source = torch.empty(COPIED, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    times = interleaved({"copy": lambda _: target.copy_(source)}, device=device, rounds=20, seconds=5.0)
    return 2 * COPIED / min(times["copy"])
