"""What to say about the names of TFMOT that are not here."""

_INSTEAD = {
    "quantization": 'Keras 3 quantizes with `model.quantize("int8")`, and for LiteRT use '
    '`kp.export_litert(model, path, weights="int8")`.',
    "clustering": "Keras 3 has no weight clustering.",
    "python": "TFMOT's internal modules have no counterpart; what users need of them is in "
    "`tfmot.sparsity.keras`.",
    "core": "TFMOT's internal modules have no counterpart; what users need of them is in "
    "`tfmot.sparsity.keras`.",
    "experimental": "To quantize a pruned model with its zeros kept, use "
    '`kp.export_litert(model, path, weights="int8")`.',
    "pruning_schedule": "Its classes are in `tfmot.sparsity.keras`.",
    "pruning_callbacks": "Its classes are in `tfmot.sparsity.keras`.",
    "prune": "Its functions are in `tfmot.sparsity.keras`.",
    "__version__": "The version is `keras_pruner.__version__`. Its pruning API is that of TFMOT "
    "0.8.1.",
    "pruning_wrapper": "Layers are not wrapped here; the optimizer applies the masks.",
    "prune_registry": "Every layer of Keras can be pruned here, so there is no registry; a layer "
    "of your own defines `get_prunable_weights`.",
}


def why_not(name: str) -> str:
    """The sentence for a name that TFMOT has, like "tfmot.quantization", or that it lacks, too."""
    here = "`keras_pruner.tfmot` has the pruning API of TFMOT: `tfmot.sparsity.keras`, `load_model`"
    instead = _INSTEAD.get(name.rpartition(".")[2], "")
    return f"{here}. It has no `{name}`. {instead}".strip()
