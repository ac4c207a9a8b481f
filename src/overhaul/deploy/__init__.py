"""From a PyTorch module to a folder that runs without it: export, check, time, choose, reopen."""

from overhaul.deploy._aotinductor import AOTInductor
from overhaul.deploy._artifact import Artifact, load
from overhaul.deploy._compare_engines import compare_engines
from overhaul.deploy._deploy import Deploy
from overhaul.deploy._engine import Engine, Runner
from overhaul.deploy._executorch import ExecuTorch
from overhaul.deploy._onnxruntime import OnnxRuntime
from overhaul.deploy._openvino import OpenVINO
from overhaul.deploy._torch import Torch
from overhaul.deploy._torch_compile import TorchCompile
from overhaul.deploy._verify import verify
from overhaul.runtime import Manifest, ManifestEntry, Signature, TensorInfo, Verification

__all__ = [
    "AOTInductor",
    "Artifact",
    "Deploy",
    "Engine",
    "ExecuTorch",
    "Manifest",
    "ManifestEntry",
    "OnnxRuntime",
    "OpenVINO",
    "Runner",
    "Signature",
    "TensorInfo",
    "Torch",
    "TorchCompile",
    "Verification",
    "compare_engines",
    "load",
    "verify",
]
