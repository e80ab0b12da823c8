"""What any problem may have beside the options of its task: how its controller is connected to its system.

    activation      between the layers of the network
    bound           limits of the controls                          kernels/bounds.py
    observe         what the controller sees of a state             kernels/seen.py
    vary            fields of the system, drawn for each sample     kernels/varied.py
    disturb         noise and pushes on the states                  kernels/noise.py
    time_weights    weights of the cost of every time step

The command line reads `OPTIONS` before any heavy import.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from stablebptt.tasks.errors import ArgumentError

ACTIVATIONS = ("tanh", "relu", "gelu", "silu", "softplus", "sin", "identity")
DISTURBANCE = {"noise": 0.0, "push": 0.0, "chance": 0.0}
# Name, kind for the command line, default and help of each.
OPTIONS = (
    ("activation", "word", "tanh", "Between the layers of the network."),
    ("bound", "text", None, "Limits of the controls: 5 for -5 to 5, one number per control, or low,high."),
    ("observe", "text", None, "What the controller sees, such as angles=2:4,time or choose=0:2,noise=0.01."),
    ("vary", "text", None, "Fields of the system, drawn for every sample: pole_mass=0.05:0.2, with commas between several."),
    ("disturb", "text", None, "Noise on the states after every step, such as 0.01 or push=0.5,chance=0.02."),
    ("time_weights", "text", None, "Weights of the cost at time steps 0 to T, with commas between them."),
)
NAMES = tuple(name for name, *_ in OPTIONS)


def read(given: Mapping[str, Any]) -> dict[str, Any]:
    """What is given and not the default, by name."""
    return {name: given[name] for name, _, default, _ in OPTIONS if name in given and not _is_default(given[name], default)}


def _is_default(value: Any, default: Any) -> bool:
    return value is None or (isinstance(value, str) and value == default)


def apply(problem: Any, given: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The problem with additions, and these in words and numbers for a file; without what a file cannot describe.

    Raises
    ------
    ValueError, TypeError
        If an addition does not fit the problem.
    """
    import numpy as np

    from stablebptt.kernels.varied import varied
    from stablebptt.tasks import arguments, observations
    from stablebptt.tasks.custom import CUSTOM, cast, renewed

    chosen = read(given)
    changes: dict[str, Any] = {}
    if "bound" in chosen:
        changes["limits"] = limits(chosen["bound"], problem.n_control)
        chosen["bound"] = changes["limits"].tolist()
    if "vary" in chosen:
        chosen["vary"] = ranges(problem.system, chosen["vary"])
        changes["system"] = varied(problem.system, chosen["vary"], problem.dtype)
    if "disturb" in chosen:
        changes["disturbance"] = disturbance(chosen["disturb"], problem.n_state)
        chosen["disturb"] = {name: np.asarray(value).tolist() for name, value in changes["disturbance"].items()}
    if "time_weights" in chosen:
        given = numbers("time_weights", chosen["time_weights"])
        weights = arguments.array("time_weights", given, (problem.steps + 1,), np.float64)
        changes["time_weights"], chosen["time_weights"] = weights, weights.tolist()
    if "observe" in chosen:
        seen = observations.of(chosen.pop("observe"), problem.n_state, problem.dt)
        changes["observation"] = cast(seen, problem.dtype)
        if observations.is_ours(seen) and (described := observations.describe(seen)) is not None:
            chosen["observe"] = described
    if "activation" in chosen or "observation" in changes:
        seen = changes.get("observation", problem.observation)
        n_seen = type(seen).size(seen, problem.n_state)
        changes["controller"] = controller(problem.controller, n_seen, chosen.get("activation"))
    made = replace(problem, **changes) if changes else problem
    return (renewed(made, chosen) if changes and made.task == CUSTOM else made), chosen


def numbers(name: str, given: Any) -> Any:
    """Numbers, also as a text with commas between them."""
    if not isinstance(given, str):
        return given
    try:
        values = [float(part) for part in given.split(",")]
    except ValueError:
        raise ArgumentError(f"{name} is {given!r}; give numbers with commas between them") from None
    return values if len(values) > 1 else values[0]


def limits(given: Any, n_control: int) -> Any:
    """Lowest and highest controls (2, n_control).

    One number b stands for -b .. b, as do `n_control` numbers above 0, one for each control. Otherwise it is a pair (low, high)
    of numbers, or of one number per control.
    """
    import numpy as np

    from stablebptt.tasks import arguments

    allowed = "give a number, one per control, or (low, high)"
    given = numbers("bound", given)
    arguments.unmasked("bound", given)
    try:
        values = np.asarray(given, np.float64)
    except (TypeError, ValueError):
        values = np.empty(0)
    if values.ndim == 0 or (values.shape == (n_control,) and np.all(values > 0) and n_control > 1) or values.shape == (1,):
        high = np.broadcast_to(values, (n_control,)).astype(np.float64)
        pair = np.stack([-high, high])
    elif values.shape in ((2,), (2, n_control)):
        pair = np.stack([np.broadcast_to(side, (n_control,)) for side in values]).astype(np.float64)
    else:
        raise ArgumentError(f"bound is {arguments.told(given)}; {allowed} (there are {n_control} controls)")
    if not np.all(np.isfinite(pair)) or not np.all(pair[0] < pair[1]):
        raise ArgumentError(f"bound is {arguments.told(given)}; numbers must be finite, and low below high: {allowed}")
    return pair


def ranges(system: Any, given: Any) -> dict[str, list[float]]:
    """Lowest and highest value by the name of the field: {"pole_mass": (0.05, 0.2)}, or "pole_mass=0.05:0.2"."""
    from stablebptt.adjoint.generics import step_batch_vjp
    from stablebptt.kernels.generics import System, step_batch
    from stablebptt.tasks import arguments
    from stablebptt.tasks.plain_python import method

    if isinstance(given, str):
        parts = (part.strip().partition("=") for part in given.split(","))
        given = {name: numbers(f"vary: {name}", values.replace(":", ",")) for name, _, values in parts}
    if not isinstance(given, Mapping) or not given:
        raise ArgumentError(f'vary is {arguments.told(given)}; give ranges such as {{"pole_mass": (0.05, 0.2)}}')
    for function in (step_batch, step_batch_vjp):
        if method(function, system) is not function.methods[System]:
            name = type(system).__name__
            raise ArgumentError(f"vary needs the step of one sample; {name} has a {function.__name__} of its own")
    names = type(system).parameter_names(system)
    found = {}
    for name, pair in given.items():
        if name not in names:
            raise ArgumentError(f"vary: {type(system).__name__} has no number {name!r}; choose from {', '.join(names) or 'none'}")
        low, high = arguments.point(f"vary: {name}", pair)
        if not low <= high:
            raise ArgumentError(f"vary: {name} is {arguments.told(pair)}; give the lowest value, then the highest")
        found[str(name)] = [low, high]
    return found


def disturbance(given: Any, n_state: int) -> dict[str, Any]:
    """Standard deviations (n_state,) of noise and pushes, and the chance of a push in a time step.

    A number, or one per number of the state, is noise; a table or words such as "noise=0.01,push=0.5,chance=0.02" may say more.
    """
    import numpy as np

    from stablebptt.tasks import arguments

    if isinstance(given, str) and "=" in given:
        given = dict(part.strip().partition("=")[::2] for part in given.split(","))
    if not isinstance(given, Mapping):
        given = {"noise": given}
    arguments.known("disturb", given, DISTURBANCE)
    found: dict[str, Any] = {}
    for name in ("noise", "push"):
        value = np.asarray(numbers(name, given.get(name, 0.0)), np.float64)
        full = np.full(n_state, value) if value.ndim == 0 else value
        found[name] = arguments.array(f"disturb: {name}", full, (n_state,), np.float64)
        if np.any(found[name] < 0):
            raise ArgumentError(f"disturb: {name} is {arguments.told(given[name])}; standard deviations must not be negative")
    found["chance"] = arguments.real("disturb: chance", numbers("chance", given.get("chance", 0.0)), least=0.0)
    if found["chance"] > 1 or (found["push"].any() and found["chance"] == 0):
        raise ArgumentError(f"disturb: chance is {found['chance']:g}; a push needs a chance above 0, of at most 1")
    return found


def controller(part: Any, n_seen: int, activation: Any) -> Any:
    """A network like this one, for so many numbers and with another activation; None for the one it has."""
    from stablebptt.kernels import activations
    from stablebptt.kernels.network import Convolution, Dense, Network, network
    from stablebptt.tasks import arguments

    if not isinstance(part, Network):
        if activation is not None:
            name = type(part).__name__
            raise ArgumentError(f"activation is {activation!r}; it is for networks, and {name} is a controller of your own")
        return part
    if isinstance(activation, activations.Activation):
        used = activation
    else:
        named = None if activation is None else arguments.choice("activation", activation, ACTIVATIONS)
        used = part.activation if named is None else activations.ACTIVATIONS[named]
    rows = part.layers()
    convolutional = bool(rows[0].convolution)
    if convolutional and n_seen != part.n_state:
        raise ArgumentError(f"the controller has convolutions over {part.n_state} numbers, and would see {n_seen}")
    shape = (part.n_state // rows[0].inputs, rows[0].inputs) if convolutional else (1, n_seen)
    layers = [Convolution(row.outputs, row.taps, row.stride) if row.convolution else Dense(row.outputs) for row in rows]
    return network(shape, layers, used)
