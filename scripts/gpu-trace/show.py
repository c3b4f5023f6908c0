#!/usr/bin/env python3
"""Reads what trace.c wrote.

    show.py trace.txt              how long the link to the GPU and its kernels are busy, one and both
    show.py trace.txt FROM TO      everything between two moments, in microseconds before the last kernel's end

Busy times are of the last LAST_MS milliseconds.
"""

import signal
import sys

LAST_MS = 50
LARGE_BYTES = 1_000_000  # copies of weights; tables and scores are smaller
TO_DEVICE = "1"
CALLS = {
    "41": "cudaMemcpyAsync", "131": "cudaStreamSynchronize", "135": "cudaEventRecord",
    "137": "cudaEventSynchronize", "147": "cudaStreamWaitEvent", "211": "cudaLaunchKernel",
    "311": "cudaGraphLaunch", "430": "cudaLaunchKernelExC",
}  # fmt: skip


def read(path):
    """Kernels (start, end, graph, stream, name), copies (start, end, bytes, kind, stream), calls."""
    kernels, copies, calls = [], [], []
    with open(path, errors="replace") as lines:
        for line in lines:
            kind, start, end, *rest = line.split(maxsplit=5 if line.startswith("K") else -1)
            of = {"K": kernels, "M": copies, "R": calls}[kind]
            of.append((int(start), int(end), *(text.strip() for text in rest)))
    return kernels, copies, calls


def merged(spans, begin):
    """What spans cover from `begin` on, as spans that don't overlap."""
    out = []
    for start, end in sorted((max(s, begin), e) for s, e in spans if e > begin):
        if out and start <= out[-1][1]:
            out[-1][1] = max(out[-1][1], end)
        else:
            out.append([start, end])
    return out


def length(spans):
    return sum(end - start for start, end in spans)


def common(a, b):
    """How long two lists of spans, each without overlaps, cover the same."""
    return sum(max(0, min(e, f) - max(s, t)) for s, e in a for t, f in b if t < e and s < f)


def busy(kernels, copies):
    last = max(end for _, end, *_ in kernels)
    begin = last - LAST_MS * 1_000_000
    large = [(s, e) for s, e, size, kind, _ in copies if int(size) >= LARGE_BYTES and kind == TO_DEVICE]
    link = merged(large, begin)
    computing = merged([(s, e) for s, e, *_ in kernels], begin)
    total = (last - begin) / 1e6
    both = common(link, computing) / 1e6
    link, computing = length(link) / 1e6, length(computing) / 1e6
    print(f"of {total:.1f} ms: link {link:.1f}, kernels {computing:.1f}, both {both:.1f}, neither {total - link - computing + both:.1f}")


def timeline(kernels, copies, calls, begin, end):
    rows = [(s, e, f"stream {stream}", name + (" (graph)" if graph != "0" else ""))
            for s, e, graph, stream, name in kernels]  # fmt: skip
    rows += [(s, e, f"stream {stream}", f"{size} bytes, kind {kind}") for s, e, size, kind, stream in copies]
    rows += [(s, e, "host", CALLS.get(call, call)) for s, e, call in calls]
    last = max(e for _, e, *_ in kernels)
    for start, stop, where, what in sorted(rows):
        at = (last - start) / 1e3
        if end <= at <= begin:
            print(f"{-at:10.1f} {(stop - start) / 1e3:8.1f} us  {where:10} {what}")


def main():
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    if len(sys.argv) not in (2, 4):
        sys.exit(__doc__.strip())
    kernels, copies, calls = read(sys.argv[1])
    if not kernels:
        sys.exit(f"{sys.argv[1]} has no kernels: was the program killed, or CUPTI not found?")
    if len(sys.argv) == 2:
        busy(kernels, copies)
    else:
        timeline(kernels, copies, calls, float(sys.argv[2]), float(sys.argv[3]))


main()
