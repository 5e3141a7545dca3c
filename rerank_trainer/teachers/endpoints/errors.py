"""What ends the asking of a service; what was answered until then is kept."""

from __future__ import annotations


class EndpointError(RuntimeError):
    """A service refuses a request, or does not answer it after all retries."""


class BudgetError(EndpointError):
    """The next request would exceed the budget."""
