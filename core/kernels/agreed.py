"""The formulas that the kernels agree with; written by formulas.py."""

AGREED = {
    "circuits/memory.py": "33a03de838b4",
    "core/accessors/base.py": "3d7008351884",
    "core/accessors/dynamic.py": "4d9c8006cc93",
    "core/accessors/sparse.py": "d0aed083243c",
    "core/accessors/static.py": "065462a3f170",
    "core/addressing.py": "1d02d424a8bc",
    "core/component.py": "b45366cf6f64",
    "core/controllers/base.py": "3ec48dc41c76",
    "core/controllers/feedforward.py": "e3c593ebcdaa",
    "core/controllers/gru.py": "48d012fba8f4",
    "core/controllers/lstm.py": "10a0c0c78a7d",
    "core/interface.py": "526679bb4ea2",
    "core/sparse_addressing.py": "a6a3ea07ddfa",
    "core/sparse_memory.py": "d3a1c0f18a76",
}
"""What each file meant."""
