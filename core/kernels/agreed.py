"""The formulas that the kernels agree with; written by formulas.py."""

AGREED = {
    "circuits/memory.py": "33a03de838b4",
    "core/accessors/base.py": "dfc60160462b",
    "core/accessors/dynamic.py": "78d56314340e",
    "core/accessors/sparse.py": "30e1349b4ca9",
    "core/accessors/static.py": "9c905aa77e61",
    "core/addressing.py": "1d02d424a8bc",
    "core/component.py": "ebf0c9e0e24d",
    "core/controllers/base.py": "9a85b78ff600",
    "core/controllers/feedforward.py": "e3c593ebcdaa",
    "core/controllers/gru.py": "48d012fba8f4",
    "core/controllers/lstm.py": "10a0c0c78a7d",
    "core/interface.py": "0178d74a4494",
    "core/sparse_addressing.py": "a6a3ea07ddfa",
}
"""What each file meant."""
