"""The formulas that the kernels agree with; written by formulas.py."""

AGREED = {
    "circuits/memory.py": "274fce5fab04",
    "core/accessors/base.py": "af0fb253a60d",
    "core/accessors/delta.py": "02577506fc15",
    "core/accessors/dynamic.py": "99367aeec70e",
    "core/accessors/soft_tape.py": "9dc3bbbdd85e",
    "core/accessors/sparse.py": "4f918e5883c1",
    "core/accessors/stack.py": "479d35e056b2",
    "core/accessors/static.py": "98ccd8a7f605",
    "core/addressing.py": "51cad7cfd96e",
    "core/clipping.py": "ededcff80f77",
    "core/component.py": "cb6329aa94d0",
    "core/controllers/automaton.py": "2f11b79c5207",
    "core/controllers/base.py": "c886343dfe3c",
    "core/controllers/feedforward.py": "6007500a931f",
    "core/controllers/gru.py": "8c6c0d9a8f1e",
    "core/controllers/lstm.py": "a5307bb3b489",
    "core/controllers/rnn.py": "f2079cc76ad3",
    "core/interface.py": "526679bb4ea2",
    "core/sparse_addressing.py": "a6a3ea07ddfa",
    "core/sparse_memory.py": "4cbdab806660",
}
"""What each file meant."""
