"""Pruned, trained, quantized, deployed: one recipe, and what is left opens in a fresh process."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

import overhaul as oh
from overhaul.core import Progress
from overhaul.testing import tiny_cnn, tiny_task

FRESH = """
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

import overhaul as oh
from overhaul.testing import tiny_cnn

folder = Path(sys.argv[1])
x = load_file(folder / "x.safetensors")["x"]
artifact = oh.load(folder / "run" / "artifact")
model = oh.load_model(folder / "run", tiny_cnn()).eval()
with torch.no_grad():
    np.savez(folder / "found.npz", artifact=artifact(x).numpy(), model=model(x).numpy())
"""


def test_a_pruned_model_trains_quantizes_exports_and_opens_in_a_fresh_process(
    tmp_path: Path,
) -> None:
    recipe = oh.Recipe(
        oh.PruneChannels(macs=0.6),
        oh.Train(epochs=1, objective=oh.Distill(teacher="original")),
        oh.Quantize(batches=1),
        oh.Deploy(engines=("torch",), prefer="bytes", timing_s=0.01, cost=False),
    )
    quiet = Progress(quiet=True)
    run = recipe.run(
        tiny_cnn(), tiny_task(), out=tmp_path / "run", control=False, cost=False, progress=quiet
    )
    kept = next(fact.value for fact in run.facts if fact.name == "kept_macs")
    assert isinstance(kept, float)
    assert kept <= 0.6
    assert any(name.endswith("weight_q") for name, _ in run.model.named_buffers())
    x = torch.rand(5, 1, 8, 8)
    save_file({"x": x}, tmp_path / "x.safetensors")
    with torch.no_grad():
        expected = run.model.eval()(x).numpy()
    done = subprocess.run(
        [sys.executable, "-c", FRESH, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = np.load(tmp_path / "found.npz")
    assert np.array_equal(found["model"], expected)
    assert np.abs(found["artifact"] - expected).max() < 0.05 * np.abs(expected).max()
