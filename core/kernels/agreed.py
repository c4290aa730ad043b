"""The formulas that the kernels agree with; written by formulas.py."""

AGREED = {
    "circuits/memory_augmented.py": "333d1493ad0e",
    "core/accessors/base.py": "cee6d66ea44e",
    "core/accessors/dynamic.py": "48c8780b957e",
    "core/accessors/sparse.py": "ba0c3010ba58",
    "core/accessors/static.py": "8a892b77aba8",
    "core/addressing.py": "1d02d424a8bc",
    "core/controllers/base.py": "25939d883170",
    "core/controllers/feedforward.py": "917ac016e8ea",
    "core/controllers/gru.py": "3ace833be8ea",
    "core/controllers/lstm.py": "e736d8aa9f52",
    "core/heads.py": "468561864180",
    "core/sparse_addressing.py": "a6a3ea07ddfa",
}
"""What each file meant."""
