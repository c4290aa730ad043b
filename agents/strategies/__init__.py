"""Strategies: how a population changes from one generation to the next, by ask and tell."""

from .ars import ARS
from .base import AnyStrategy, Strategy
from .cma_es import CMAES
from .cr_fm_nes import CRFMNES
from .deep_ga import DeepGA
from .neat import Neat
from .openai_es import OpenAIES
from .pgpe import PGPE
from .search import Found, maximise, minimise
from .sep_cma_es import SepCMAES
from .snes import SNES
from .trust import Trust

__all__ = [
    "ARS",
    "CMAES",
    "CRFMNES",
    "PGPE",
    "SNES",
    "AnyStrategy",
    "DeepGA",
    "Found",
    "Neat",
    "OpenAIES",
    "SepCMAES",
    "Strategy",
    "Trust",
    "maximise",
    "minimise",
]
