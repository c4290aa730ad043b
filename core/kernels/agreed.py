"""The formulas that the kernels agree with; written by formulas.py."""

AGREED = {
    "circuits/memory.py": "32ab01279eea",
    "core/accessors/base.py": "0ff835c0e523",
    "core/accessors/dynamic.py": "4d9c8006cc93",
    "core/accessors/sparse.py": "5b0471a780da",
    "core/accessors/static.py": "065462a3f170",
    "core/addressing.py": "6f2258efbf53",
    "core/component.py": "72d54d29d6e3",
    "core/controllers/base.py": "d47ccf52e601",
    "core/controllers/feedforward.py": "d0c633d3cc0f",
    "core/controllers/gru.py": "48d012fba8f4",
    "core/controllers/lstm.py": "10a0c0c78a7d",
    "core/interface.py": "526679bb4ea2",
    "core/sparse_addressing.py": "a6a3ea07ddfa",
    "core/sparse_memory.py": "d3a1c0f18a76",
}
"""What each file meant."""
