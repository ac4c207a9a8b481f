"""Which operations on tensors are of which kind, by their names."""

COPIES = frozenset(
    [
        *("view", "reshape", "view_as", "reshape_as", "flatten", "unflatten", "squeeze", "t", "T"),
        *("expand", "expand_as", "broadcast_to", "repeat", "tile", "unsqueeze", "permute", "mT"),
        *("transpose", "movedim", "contiguous", "clone", "detach", "to", "long", "int", "alias"),
        *("__getitem__", "select", "narrow", "chunk", "split", "unbind", "flip", "roll"),
    ]
)
"""They copy the values of their first operand to other places."""

PICKS = ("__getitem__", "index_select", "gather", "take_along_dim")
"""They pick positions of their first operand by the values of another."""

SHAPES = ("shape", "size")
"""They give the shape."""

READS = frozenset(
    [
        "item",
        "tolist",
        "__bool__",
        "__int__",
        "__float__",
        "__index__",
        "__complex__",
        "numpy",
        "__array__",
        "nonzero",
        "equal",
        "allclose",
        "is_nonzero",
        "unique",
        "__contains__",
    ]
)
"""They give values to the program, which may go another way for others."""

ABOUT = frozenset(
    [
        "dim",
        "ndim",
        "dtype",
        "device",
        "layout",
        "is_floating_point",
        "is_complex",
        "is_cuda",
        "is_nested",
        "requires_grad",
        "is_quantized",
        "is_sparse",
        "is_contiguous",
        "stride",
        "storage_offset",
        "get_device",
        "element_size",
        "grad_fn",
        "is_leaf",
        "grad",
        "__len__",
        "is_meta",
        "is_mps",
        "is_mkldnn",
        "data_ptr",
        "itemsize",
        "nbytes",
        "__repr__",
        "__str__",
        "__format__",
        "is_inference",
        "_version",
        "names",
        "is_signed",
        "untyped_storage",
        "is_xpu",
        "is_cpu",
        "__hash__",
        "result_type",
        "promote_types",
        "__get__",
        "is_mtia",
        "is_neg",
        "is_conj",
        "is_hpu",
        "is_ipu",
        "is_vulkan",
        "is_xla",
        "is_maia",
        "is_shared",
        "_is_view",
        "retain_grad",
        "register_hook",
    ]
)
"""They say something of a tensor that no removal changes."""
