"""`load_model`: the model of a finished run, rebuilt from the user's own class."""

from pathlib import Path

from torch import nn

from overhaul.core import ModelError, RunFolder, rebuild


def load_model(folder: str | Path, original: nn.Module) -> nn.Module:
    """Return the model that a finished run ended with, as an ordinary trainable module.

    It is the original with the recorded edits of structure and the saved tensors; nothing is
    unpickled. Where a recipe left the structure alone, `weights.safetensors` of the run folder can
    be loaded with `load_state_dict` just as well.

    Args:
        folder: The run folder; or the folder `control` in it, for the network of the control.
        original: A model of the class that the run was given, from the same factory with the same
            arguments. Its weights do not matter, and it stays as it is.

    Raises:
        RunFolderError: there is no finished run in the folder.
        ModelError: the original is no model, or of another structure.

    Example:
        >>> import tempfile
        >>> from overhaul.core import Progress
        >>> from overhaul.pruning import PruneWeights
        >>> from overhaul.running import Recipe
        >>> from overhaul.testing import tiny_cnn, tiny_task
        >>> with tempfile.TemporaryDirectory() as out:
        ...     run = Recipe(PruneWeights(sparsity=0.5)).run(
        ...         tiny_cnn(), tiny_task(), out=out, cost=False, progress=Progress(quiet=True)
        ...     )
        ...     model = load_model(out, tiny_cnn())
        >>> bool((model.fc.weight == run.model.fc.weight).all())
        True
    """
    if not isinstance(original, nn.Module):
        raise ModelError(
            f"load_model needs a model as `original`, got {original!r}. Call the factory that the "
            "run was given: load_model(folder, network())."
        )
    state = RunFolder(folder, writable=False).last_step()
    try:
        return rebuild(original, state.edits, state.tensors, state.trainable)
    except (ModelError, AttributeError, RuntimeError) as error:
        raise ModelError(
            f"the run in '{folder}' did not start from a {type(original).__name__} like this one: "
            f"{error} Pass the model that the run was given, as it was before the first step: from "
            "the same factory with the same arguments, and not what the run has made of it."
        ) from error
