"""The nouns that every other room is built on."""

from overhaul.core._batch import Batch, Outputs, Targets, unwrap_outputs
from overhaul.core._context import Context, Deployed
from overhaul.core._edit import Carried, Edit
from overhaul.core._errors import (
    ModelError,
    NonFiniteLossError,
    OrderError,
    SealedTestError,
    SpecError,
)
from overhaul.core._facts import Fact, SplitName
from overhaul.core._fast_path import without_fast_path
from overhaul.core._head import find_head
from overhaul.core._integers import PLAIN, StoresIntegers, dequantize, pack4, quantize, unpack4
from overhaul.core._model_state import (
    evaluating,
    load_tensors_,
    model_fingerprint,
    model_tensors,
    rebuild,
    tensor_hash,
    trainable_names,
)
from overhaul.core._names import (
    concrete_subclasses,
    find_class,
    import_object,
    import_path,
    snake_case,
)
from overhaul.core._network import Network, load_weights_
from overhaul.core._progress import Advance, Progress
from overhaul.core._random import derived_seed, seed_everything, seeded
from overhaul.core._run_folder import RunFolder, StepState
from overhaul.core._schema import json_schema
from overhaul.core._select import matching_names, owner_of, replace_module_
from overhaul.core._spec import Factory, InputFile, Spec, yaml_text
from overhaul.core._step import Step
from overhaul.core._store import (
    CheckpointFolder,
    read_state,
    whole_folder,
    write_state,
    write_tensors,
    write_text,
)
from overhaul.core._task import (
    SealedSplit,
    Split,
    Splits,
    Task,
    check_model_fits,
    forward_problem,
    part_of,
)
from overhaul.core._traits import Trait, Traits
from overhaul.runtime import (
    ArtifactError,
    CorruptedFileError,
    DataError,
    MissingExtraError,
    OverhaulError,
    RunFolderError,
    canonical_json,
    file_hash,
    load_optional,
    nearest,
)

__all__ = [
    "PLAIN",
    "Advance",
    "ArtifactError",
    "Batch",
    "Carried",
    "CheckpointFolder",
    "Context",
    "CorruptedFileError",
    "DataError",
    "Deployed",
    "Edit",
    "Fact",
    "Factory",
    "InputFile",
    "MissingExtraError",
    "ModelError",
    "Network",
    "NonFiniteLossError",
    "OrderError",
    "Outputs",
    "OverhaulError",
    "Progress",
    "RunFolder",
    "RunFolderError",
    "SealedSplit",
    "SealedTestError",
    "Spec",
    "SpecError",
    "Split",
    "SplitName",
    "Splits",
    "Step",
    "StepState",
    "StoresIntegers",
    "Targets",
    "Task",
    "Trait",
    "Traits",
    "canonical_json",
    "check_model_fits",
    "concrete_subclasses",
    "dequantize",
    "derived_seed",
    "evaluating",
    "file_hash",
    "find_class",
    "find_head",
    "forward_problem",
    "import_object",
    "import_path",
    "json_schema",
    "load_optional",
    "load_tensors_",
    "load_weights_",
    "matching_names",
    "model_fingerprint",
    "model_tensors",
    "nearest",
    "owner_of",
    "pack4",
    "part_of",
    "quantize",
    "read_state",
    "rebuild",
    "replace_module_",
    "seed_everything",
    "seeded",
    "snake_case",
    "tensor_hash",
    "trainable_names",
    "unpack4",
    "unwrap_outputs",
    "whole_folder",
    "without_fast_path",
    "write_state",
    "write_tensors",
    "write_text",
    "yaml_text",
]
