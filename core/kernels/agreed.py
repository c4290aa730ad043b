"""The formulas that the kernels agree with; written by formulas.py."""

AGREED = {
    "circuits/memory.py": "33a03de838b4",
    "core/accessors/base.py": "9314a6c81483",
    "core/accessors/dynamic.py": "4d9c8006cc93",
    "core/accessors/sparse.py": "5b0471a780da",
    "core/accessors/static.py": "065462a3f170",
    "core/addressing.py": "6f2258efbf53",
    "core/component.py": "72d54d29d6e3",
    "core/controllers/base.py": "b976890d8b6e",
    "core/controllers/feedforward.py": "0c774eb256cd",
    "core/controllers/gru.py": "ca1afdcd10d6",
    "core/controllers/lstm.py": "f4c10b41cdb3",
    "core/interface.py": "526679bb4ea2",
    "core/sparse_addressing.py": "a6a3ea07ddfa",
    "core/sparse_memory.py": "d3a1c0f18a76",
}
"""What each file meant."""
