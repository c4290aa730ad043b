"""Answers that are compared with the vectors of tokens: the embedding serves as the last layer, too."""

from __future__ import annotations

import math
from typing import Any

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from .circuit import Circuit


class TiedEmbedding(Circuit):
    """A circuit whose output layer can be tied to its embedding (Press & Wolf 2017, 1608.05859).

    The output layer then makes a vector, and the answer to class c is its scaled product with the vector of token c: a
    circuit that has found a token's vector has found the token, however few times it was seen in training.
    """

    tied_embedding: bool = Field(
        default=False,
        description="answers are compared with the embedding of each token, of which the first O are the classes, "
        "rather than with weights of their own",
    )

    @classmethod
    def check_options(cls, options: Any) -> None:
        """See :meth:`Component.check_options`."""
        super().check_options(options)
        if getattr(options, "tied_embedding", False) and options.embedding_size is None:  # a Tape has no such option
            raise ValueError("tied_embedding: got True without embedding_size; allowed: False")

    def output_layer(self, features: int) -> nn.Linear:
        """What makes answers of F features, or with ``tied_embedding`` vectors of E elements.

        Raises:
            ValueError: there are more classes than tokens.
        """
        if not self.tied_embedding or self.embedding_size is None:
            return nn.Linear(features, self.output_size)
        if self.output_size > self.input_size:
            raise ValueError(
                f"tied_embedding: got True for {self.output_size} classes and {self.input_size} tokens; allowed with "
                "more classes than tokens: False"
            )
        return nn.Linear(features, self.embedding_size)

    def compared(self, made: Tensor) -> Tensor:
        """Logits ``[…, O]`` from what the output layer made: with ``tied_embedding`` ``[…, E]``, else themselves."""
        if not self.tied_embedding:
            return made
        assert self.embedding is not None
        vectors = self.embedding.weight[: self.output_size]
        return functional.linear(made, vectors.to(made.dtype)) / math.sqrt(vectors.shape[1])
