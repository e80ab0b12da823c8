"""A task is data: one record holds everything the package knows about it; docs/adding_a_system.md, "A task".

Commands, their help, checks of options, plans, reports, pictures and tests read the record. The command line reads all records
before any heavy import, so a task's module imports kernels, NumPy and Matplotlib in the functions that use them.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from stablebptt.tasks import additions
from stablebptt.tasks.errors import ArgumentError

__all__ = ["DTYPE", "HIDDEN", "Option", "Task", "duration", "loss", "output_init", "steps"]

CUSTOM = "custom"  # the task of problems with custom parts
LOSSES = ("final", "continuous")
DTYPES = ("float32", "float64")
OUTPUT_INITS = ("glorot", "zero")
KINDS = ("size", "whole", "real", "word", "flag", "sizes", "point", "dtype", "text")
LISTS = ("sizes", "point")  # kinds whose value is a list


@dataclass(frozen=True)
class Option:
    """A keyword of a task, and an option of its commands.

    Attributes
    ----------
    name : keyword; on the command line ``--name``, with - in place of _
    kind : "size" (a number of objects), "whole", "real", "word", "flag", "sizes" (of layers), "point" (two numbers), "dtype", or
        "text" (read elsewhere)
    default : value, if none is given
    help : description in a few words
    least, most, above : bounds of a number; by default a size is at least 1, and a whole number at least 0
    choices : allowed words; empty for any word

    Examples
    --------
    >>> stiffness = sb.Option("stiffness", "real", 2.0, "Force per length [N/m].", above=0)
    >>> stiffness.read(3)
    3.0
    """

    name: str
    kind: str
    default: Any
    help: str
    least: float | None = None
    above: float | None = None
    most: int | None = None
    choices: Sequence[str] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.isidentifier() or self.name.startswith("_"):
            raise ArgumentError(f"the name of an option is {self.name!r}; it must be a keyword, such as 'stiffness'")
        if self.kind not in KINDS:
            raise ArgumentError(f"option {self.name} is of kind {self.kind!r}; choose from {', '.join(KINDS)}")

    def read(self, value: Any) -> Any:
        """A checked value, in the form of files: a word, a number or a list; an ArgumentError says what is wrong.

        Parameters
        ----------
        value : as it is given in Python, in a file or on the command line
        """
        from stablebptt.tasks import arguments

        if self.kind in ("size", "whole"):
            least = (self.kind == "size") if self.least is None else self.least
            most = self.most or (arguments.LARGEST if self.kind == "size" else arguments.MOST)
            return arguments.whole(self.name, value, int(least), most)
        if self.kind == "real":
            return arguments.real(self.name, value, above=self.above, least=self.least)
        if self.kind == "word":
            return arguments.choice(self.name, value, self.choices) if self.choices else arguments.word(self.name, value)
        if self.kind == "flag":
            return arguments.flag(self.name, value)
        if self.kind == "dtype":
            return arguments.precision(value).__name__
        if self.kind == "text":
            return arguments.plain(self.name, value)
        return list(getattr(arguments, self.kind)(self.name, value))


@dataclass(frozen=True)
class Task:
    """What can be learned: a name, options, and functions of the options. A call with options makes the problem.

    Attributes
    ----------
    name : of the command, and of the table in a config file
    summary : what is learned, in a sentence
    options : in the order of files
    make : (**options) -> Problem
    title : (**options) -> a few words for reports; needs no kernels
    solved : (**options) -> test loss below which a run has solved its task; NaN if unknown
    picture : (rollouts, sample) -> figure of the rollouts of one initial state
    film : (panels, rollouts, sample) -> functions that move the panels to a time step
    published : options that the published runs vary, with their values; None if nothing is published
    small : options of a small problem, for tests

    Examples
    --------
    >>> def make(stiffness):
    ...     return sb.problem("pendulum", duration=1 / stiffness)
    >>> task = sb.Task("spring", "Hold a spring.", [sb.Option("stiffness", "real", 2.0, "Force per length [N/m].")], make)
    >>> task.read({"stiffness": 4})
    {'stiffness': 4.0}
    """

    name: str
    summary: str
    options: Sequence[Option]
    make: Callable[..., Any]
    title: Callable[..., str] | None = None
    solved: Callable[..., float] | None = None
    picture: Callable[..., Any] | None = None
    film: Callable[..., Any] | None = None
    published: Mapping[str, list[Any]] | None = None
    small: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = [option.name for option in self.options]
        if not isinstance(self.name, str) or not self.name.isidentifier():
            raise ArgumentError(f"the name of a task is {self.name!r}; it must be a word, such as 'spring'")
        if len(set(names)) < len(names):
            raise ArgumentError(f"task {self.name} has two options of one name among {', '.join(names)}")

    @property
    def all_options(self) -> tuple[Option, ...]:
        """The task's own options, then those that all tasks have; see `stablebptt.tasks.additions`."""
        own = {option.name for option in self.options}
        return (*self.options, *(option for option in ADDITIONS if option.name not in own))

    def read(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The task's own options, checked, in the form of files.

        Parameters
        ----------
        given : values by the name of the option; those that are missing have their defaults
        """
        from stablebptt.tasks import arguments

        arguments.known(self.name, given, [option.name for option in self.all_options])
        return {option.name: option.read(given.get(option.name, option.default)) for option in self.options}

    def __call__(self, *values: Any, **given: Any) -> Any:
        """The problem with these options; missing ones have their defaults."""
        from stablebptt.tasks.problems import Problem

        if len(values) > len(self.options):
            raise ArgumentError(f"{self.name} has {len(self.options)} options; {len(values)} are given")
        given = {option.name: value for option, value in zip(self.options, values)} | given
        options = self.read(given)
        problem = self.make(**options)
        if not isinstance(problem, Problem):
            found = type(problem).__name__
            raise ArgumentError(f"task {self.name} made {found}, not a problem; return sb.problem(system=..., ...)")
        problem, added = additions.apply(problem, {name: value for name, value in given.items() if name not in options})
        options |= added
        if not problem.options:  # the record fills them in
            return replace(problem, options=options)
        if problem.task == CUSTOM:
            return replace(problem, options={**problem.options, "arguments": options})
        return problem


def document(function: Callable, title: str, options: Iterable[Option], *, alone: bool = True) -> None:
    """Let `help` and tab completion show options that a function takes as ``**keywords``: name, default, allowed, meaning."""
    signature = inspect.signature(function)
    known = {name: each for name, each in signature.parameters.items() if each.kind is not each.VAR_KEYWORD}
    rest = [each for each in signature.parameters.values() if each.kind is each.VAR_KEYWORD]
    lines = [title, "-" * len(title)]
    for option in options:
        allowed = f", one of {', '.join(map(repr, option.choices))}" if option.choices else ""
        lines += [f"{option.name} : default {option.default!r}{allowed}", f"    {option.help}"]
        default = option.default if alone else ...  # tasks have defaults of their own
        known.setdefault(option.name, inspect.Parameter(option.name, inspect.Parameter.KEYWORD_ONLY, default=default))
    function.__signature__ = signature.replace(parameters=[*known.values(), *rest])  # type: ignore[attr-defined]
    function.__doc__ = f"{inspect.cleandoc(function.__doc__ or '')}\n\n" + "\n".join(lines)


def steps(default: int) -> Option:
    """The option `steps`: the horizon T.

    Parameters
    ----------
    default : T, if none is given

    Examples
    --------
    >>> steps(100).read(20)
    20
    """
    return Option("steps", "whole", default, "Time steps T.", least=1)


def duration(default: float, unit: str = "") -> Option:
    """The option `duration`: the total time, in `unit`.

    Parameters
    ----------
    default : time, if none is given

    Examples
    --------
    >>> duration(2.0, " [s]").help
    'Total time [s].'
    """
    return Option("duration", "real", default, f"Total time{unit}.", above=0)


def loss(default: str) -> Option:
    """The option `loss`: "final" or "continuous".

    Parameters
    ----------
    default : of the two

    Examples
    --------
    >>> loss("final").choices
    ('final', 'continuous')
    """
    return Option("loss", "word", default, "Loss of the last state, or of all.", choices=LOSSES)


def output_init(default: str) -> Option:
    """The option `output_init`: "glorot" or "zero".

    Parameters
    ----------
    default : of the two

    Examples
    --------
    >>> output_init("zero").default
    'zero'
    """
    return Option("output_init", "word", default, "Kernel of the last layer at first.", choices=OUTPUT_INITS)


HIDDEN = Option("hidden", "sizes", (100, 100), "Sizes of the hidden layers.")
DTYPE = Option("dtype", "dtype", "float32", "Precision.", choices=DTYPES)
# What all tasks have.
ADDITIONS = tuple(
    Option(name, kind, default, help, choices=additions.ACTIVATIONS if name == "activation" else ())
    for name, kind, default, help in additions.OPTIONS
)
