"""The formulas that the kernels agree with; written by formulas.py."""

AGREED = {
    "circuits/memory.py": "33a03de838b4",
    "core/accessors/base.py": "e30d1b06e00e",
    "core/accessors/dynamic.py": "4d9c8006cc93",
    "core/accessors/sparse.py": "3116b5d5a73a",
    "core/accessors/static.py": "065462a3f170",
    "core/addressing.py": "1d02d424a8bc",
    "core/component.py": "c84604f0567c",
    "core/controllers/base.py": "c0b1902dbd21",
    "core/controllers/feedforward.py": "e3c593ebcdaa",
    "core/controllers/gru.py": "48d012fba8f4",
    "core/controllers/lstm.py": "10a0c0c78a7d",
    "core/interface.py": "9ea054f5d62b",
    "core/sparse_addressing.py": "a6a3ea07ddfa",
}
"""What each file meant."""
