"""The process that `artifact_cost` starts: it prints one line of JSON."""

import gc
import json
import sys
import time
from pathlib import Path

from overhaul.deploy._artifact import engine_named, load
from overhaul.evaluation import peak_bytes, reset_peak
from overhaul.runtime import read_golden, read_signature


def main() -> None:
    """Open the artifact that the command line names, and run its first golden sample."""
    path, threads = Path(sys.argv[1]), int(sys.argv[2])
    signature = read_signature(path)
    engine_named(signature).check_installed()  # packages are imported before anything is measured
    inputs, _ = read_golden(path, signature, "pt")
    one = [tensor[:1].clone() for tensor in inputs]
    del inputs
    gc.collect()
    reset_peak()
    before = peak_bytes()
    start = time.perf_counter()
    artifact = load(path, threads=threads, trust=True)
    load_s = time.perf_counter() - start
    artifact(*one)
    print(json.dumps({"load_s": load_s, "peak_bytes": peak_bytes() - before}))
