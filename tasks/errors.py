"""Errors that users of the package may want to catch."""


class ArgumentError(ValueError, TypeError):
    """What was given cannot be used; the message says what was given and what is allowed.

    It is caught as a ValueError and as a TypeError: whether a value or its type is wrong is not always two things.
    """


class DivergedError(ArithmeticError):
    """A computation left the finite numbers.

    Attributes
    ----------
    epoch, batch, step : int or None
        The first place: epoch and mini-batch (counted from 1), time step (counted from 0).
    """

    def __init__(
        self, message: str, epoch: int | None = None, batch: int | None = None, step: int | None = None
    ) -> None:
        super().__init__(message)
        self.epoch, self.batch, self.step = epoch, batch, step


class BackendError(RuntimeError):
    """This machine cannot compute the request with the given backend."""


class OwnCodeError(Exception):
    """A user's own module or function failed; the message says how, in which file and line."""
