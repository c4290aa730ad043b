"""The fifteen tasks of "Neural Networks and the Chomsky Hierarchy" (Delétang et al. 2023, arXiv 2207.02098).

Rules and distributions are those of its code: strings of 1 to 40 tokens in training, of 41 to 500 in the test, a step
for each class of the answer after the string. Accuracy is the share of right classes in each string, then the mean over
strings (there, over all positions of the strings of one length). A task counts as solved from 90 % on.
"""

from .binary_addition import BinaryAdditionEnv
from .binary_multiplication import BinaryMultiplicationEnv
from .bucket_sort import BucketSortEnv
from .compute_sqrt import ComputeSqrtEnv
from .cycle_navigation import CycleNavigationEnv
from .duplicate_string import DuplicateStringEnv
from .even_pairs import EvenPairsEnv
from .missing_duplicate import MissingDuplicateEnv
from .modular_arithmetic import ModularArithmeticEnv
from .modular_arithmetic_brackets import ModularArithmeticBracketsEnv
from .odds_first import OddsFirstEnv
from .parity_check import ParityCheckEnv
from .reverse_string import ReverseStringEnv
from .solve_equation import SolveEquationEnv
from .stack_manipulation import StackManipulationEnv

__all__ = [
    "BinaryAdditionEnv",
    "BinaryMultiplicationEnv",
    "BucketSortEnv",
    "ComputeSqrtEnv",
    "CycleNavigationEnv",
    "DuplicateStringEnv",
    "EvenPairsEnv",
    "MissingDuplicateEnv",
    "ModularArithmeticBracketsEnv",
    "ModularArithmeticEnv",
    "OddsFirstEnv",
    "ParityCheckEnv",
    "ReverseStringEnv",
    "SolveEquationEnv",
    "StackManipulationEnv",
]
