"""`differences_here`: what of this machine is not as it was where an artifact was made."""

import sys

from overhaul.runtime._cpu import cpu_features
from overhaul.runtime._signature import Signature


def differences_here(signature: Signature) -> tuple[str, ...]:
    """Return sentences about another version of the engine, or a CPU that lacks instructions.

    Args:
        signature: Of an artifact that has been opened, so that its engine is imported.
    """
    found = []
    name = signature.engine if signature.engine in signature.versions else "torch"
    wanted, here = signature.versions.get(name), getattr(sys.modules.get(name), "__version__", None)
    if wanted is not None and here is not None and str(here) != wanted:
        found.append(f"It was made with {name} {wanted}, and here is {name} {here}.")
    features = cpu_features()
    missing = [feature for feature in signature.cpu if feature not in features]
    if features and missing:
        found.append(
            f"This CPU lacks {', '.join(missing)}, which the CPU that it was made on has: it may "
            "be slower than it was there, and may round otherwise."
        )
    return tuple(found)
