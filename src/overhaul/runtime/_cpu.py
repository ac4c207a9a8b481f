"""Which instructions of a CPU decide how fast, and how, an engine computes."""

from pathlib import Path

_FEATURES = (
    *("avx2", "fma", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_int8", "amx_bf16", "asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve"),
)
"""Of x86 and Arm: vectors, products of 8-bit integers, 16-bit numbers, matrices."""
_SUMS_OF_PRODUCTS = {"avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm"}
_CPUINFO = Path("/proc/cpuinfo")


def cpu_features(cpuinfo: Path = _CPUINFO) -> tuple[str, ...]:
    """Return the names of the CPU's instructions that matter, as Linux names them.

    Args:
        cpuinfo: What the system says of its CPUs. Where there is no such file, nothing is known and
            nothing is returned.
    """
    try:
        lines = cpuinfo.read_text("utf-8", errors="replace").splitlines()
    except OSError:
        return ()
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            present = set(value.split())
            return tuple(feature for feature in _FEATURES if feature in present)
    return ()


def int8_instructions() -> bool | None:
    """Return whether the CPU adds products of 8-bit integers in one instruction, exactly.

    None where the system does not say what its CPU has.
    """
    features = cpu_features()
    return not _SUMS_OF_PRODUCTS.isdisjoint(features) if features else None
