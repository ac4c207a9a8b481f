"""Deployed models where there is no torch: open, verify and call them with NumPy and an engine."""

from overhaul.runtime._artifact import Artifact, load
from overhaul.runtime._cpu import cpu_features, int8_instructions
from overhaul.runtime._difference import INFINITE, Difference, difference
from overhaul.runtime._errors import (
    ArtifactError,
    CorruptedFileError,
    DataError,
    MissingExtraError,
    OverhaulError,
    RunFolderError,
    nearest,
)
from overhaul.runtime._golden import GOLDEN, read_golden
from overhaul.runtime._hashes import canonical_json, file_hash
from overhaul.runtime._manifest import MANIFEST, Manifest, ManifestEntry, read_manifest
from overhaul.runtime._onnxruntime import open_onnxruntime, open_session
from overhaul.runtime._opened import OpenedArtifact, checked_folder
from overhaul.runtime._openvino import import_openvino, last_line, open_openvino, openvino_core
from overhaul.runtime._optional import load_optional
from overhaul.runtime._signature import SIGNATURE, AnyTensor, Signature, TensorInfo, read_signature
from overhaul.runtime._verify import Verification, verify, verify_opened

__all__ = [
    "GOLDEN",
    "INFINITE",
    "MANIFEST",
    "SIGNATURE",
    "AnyTensor",
    "Artifact",
    "ArtifactError",
    "CorruptedFileError",
    "DataError",
    "Difference",
    "Manifest",
    "ManifestEntry",
    "MissingExtraError",
    "OpenedArtifact",
    "OverhaulError",
    "RunFolderError",
    "Signature",
    "TensorInfo",
    "Verification",
    "canonical_json",
    "checked_folder",
    "cpu_features",
    "difference",
    "file_hash",
    "import_openvino",
    "int8_instructions",
    "last_line",
    "load",
    "load_optional",
    "nearest",
    "open_onnxruntime",
    "open_openvino",
    "open_session",
    "openvino_core",
    "read_golden",
    "read_manifest",
    "read_signature",
    "verify",
    "verify_opened",
]
