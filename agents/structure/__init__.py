"""Structural learning: strategies that change a circuit, trials that judge them, policies that choose among them."""

from .grades import Grades, graded
from .policy import EpsilonGreedyPolicy, Policy, RandomPolicy, ThompsonPolicy, make_policy
from .strategies import STRATEGIES, Limits, Strategy, Subject
from .tracker import Record, Tracker
from .trial import PairedTrial, RewardTrial, Verdict

__all__ = [
    "STRATEGIES",
    "EpsilonGreedyPolicy",
    "Grades",
    "Limits",
    "PairedTrial",
    "Policy",
    "RandomPolicy",
    "Record",
    "RewardTrial",
    "Strategy",
    "Subject",
    "ThompsonPolicy",
    "Tracker",
    "Verdict",
    "graded",
    "make_policy",
]
