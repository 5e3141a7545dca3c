"""The budget of a paid service: what may be spent, what a request costs, and what is left to pay."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Budget:
    """What may be spent, counted over all runs that share a journal: a run that starts again does not start at 0.

    A request counts from the moment it is sent. It counts no longer if the service refused it (429, 5xx) or was not
    reached; it still does if the answer was cut or came too late, and if the run was killed meanwhile, because the
    service may have charged it.

    Args:
        max_requests: The most requests; None is no limit.
        max_pairs: The most pairs; None is no limit.
        max_cost: The most money, in the unit of the prices; None is no limit.
        price_per_request: What a request costs.
        price_per_pair: What a pair costs, for services that charge tokens: those of a usual pair.

    Raises:
        ValueError: If a number is negative or not finite, or there is a ``max_cost`` and no price.

    >>> Budget(max_cost=5.0, price_per_request=0.002).cost(num_requests=1000, num_pairs=16_000)
    2.0
    """

    max_requests: int | None = None
    max_pairs: int | None = None
    max_cost: float | None = None
    price_per_request: float = 0.0
    price_per_pair: float = 0.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be 0 or more, found {value}")
        if self.max_cost is not None and not self.has_price:
            raise ValueError(f"max_cost={self.max_cost} needs price_per_request or price_per_pair, or nothing costs")

    @property
    def has_price(self) -> bool:
        """Whether anything costs money."""
        return self.price_per_request > 0 or self.price_per_pair > 0

    def cost(self, num_requests: int, num_pairs: int) -> float:
        """What so many requests about so many pairs cost, in the unit of the prices."""
        return num_requests * self.price_per_request + num_pairs * self.price_per_pair

    def allows(self, num_requests: int, num_pairs: int) -> bool:
        """Whether so many requests about so many pairs, all together, stay within the budget."""
        return (
            (self.max_requests is None or num_requests <= self.max_requests)
            and (self.max_pairs is None or num_pairs <= self.max_pairs)
            # sums of prices round: a thousandth of a millionth more is no excess
            and (self.max_cost is None or self.cost(num_requests, num_pairs) <= self.max_cost * (1 + 1e-9))
        )

    def report(self, num_requests: int, num_pairs: int) -> str:
        """So many requests and pairs as text, with their cost where there is a price."""
        cost = f", cost {self.cost(num_requests, num_pairs):.4g}" if self.has_price else ""
        return f"{num_requests} requests, {num_pairs} pairs{cost}"


@dataclass(frozen=True)
class Estimate:
    """What is left to ask a service for.

    Attributes:
        num_pairs: Pairs without an answer in the journal, equal ones once.
        num_requests: Requests that ask for them, if none has to be repeated.
        cost: What these cost, in the unit of the budget's prices; None without prices.
    """

    num_pairs: int
    num_requests: int
    cost: float | None
