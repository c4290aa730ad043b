"""Strategies: how a population changes from one generation to the next, by ask and tell."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from .base import Strategy, StrategyOptions
from .cma_es import CMAES, CMAESOptions
from .deep_ga import DeepGA, DeepGAOptions
from .neat import Neat, NeatOptions
from .openai_es import OpenAIES, OpenAIESOptions
from .pgpe import PGPE, PGPEOptions
from .sep_cma_es import SepCMAES, SepCMAESOptions
from .snes import SNES, SNESOptions
from .trust import Trust, TrustOptions

STRATEGIES: dict[str, Any] = {
    "trust": Trust,
    "deep-ga": DeepGA,
    "openai-es": OpenAIES,
    "snes": SNES,
    "pgpe": PGPE,
    "cma-es": CMAES,
    "sep-cma-es": SepCMAES,
    "neat": Neat,
}
"""Strategies by the name that options give them."""

AnyStrategyOptions = Annotated[
    TrustOptions
    | DeepGAOptions
    | OpenAIESOptions
    | SNESOptions
    | PGPEOptions
    | CMAESOptions
    | SepCMAESOptions
    | NeatOptions,
    Field(discriminator="type"),
]
"""The ``strategy:`` block of the evolution agent."""

__all__ = [
    "CMAES",
    "PGPE",
    "SNES",
    "STRATEGIES",
    "AnyStrategyOptions",
    "CMAESOptions",
    "DeepGA",
    "DeepGAOptions",
    "Neat",
    "NeatOptions",
    "OpenAIES",
    "OpenAIESOptions",
    "PGPEOptions",
    "SNESOptions",
    "SepCMAES",
    "SepCMAESOptions",
    "Strategy",
    "StrategyOptions",
    "Trust",
    "TrustOptions",
]
