"""Errors that users may want to catch."""

__all__ = ["ArgumentError", "BackendError", "DivergedError"]


class ArgumentError(ValueError, TypeError):
    """An argument cannot be used. The message says what was given and what is allowed.

    It is both a ValueError and a TypeError, because a wrong value and a wrong type are not always distinct.

    Examples
    --------
    >>> try:
    ...     sb.problem("cartpole", poles=0)
    ... except ArgumentError as error:
    ...     print(error)
    poles is 0; it must be at least 1
    """


class OwnLineError(ArgumentError):
    """A user's function is wrong. The message begins with its file and line."""


class DivergedError(ArithmeticError):
    """A computation left the finite numbers.

    Attributes
    ----------
    epoch, batch, step : int or None
        Where it began: epoch and mini-batch (counted from 1), time step (counted from 0).

    Examples
    --------
    >>> error = sb.DivergedError("state not finite", epoch=1, batch=2, step=30)
    >>> error.epoch, error.batch, error.step
    (1, 2, 30)
    """

    def __init__(
        self, message: str, epoch: int | None = None, batch: int | None = None, step: int | None = None
    ) -> None:
        super().__init__(message)
        self.epoch, self.batch, self.step = epoch, batch, step


class BackendError(RuntimeError):
    """This machine cannot compute the request with the given backend.

    Examples
    --------
    >>> try:
    ...     raise sb.BackendError("no device")
    ... except RuntimeError as error:
    ...     print(error)
    no device
    """


class OwnCodeError(Exception):
    """A user's module or function failed. The message says how, in which file and line."""
