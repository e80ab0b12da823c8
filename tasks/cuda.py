"""The engine "cuda": rollouts and gradients on a CUDA device, many runs in one launch; docs/gpu.md.

Only the backend "cuda" imports this file.
"""

import functools
import math
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numba import cuda, from_dtype

from stablebptt.adjoint.cuda_rollout import Gates as DeviceGates
from stablebptt.adjoint.cuda_rollout import Results, bars_size, make_gradient, make_join
from stablebptt.kernels.core.structs import Struct
from stablebptt.kernels.cuda_block import SIMULATED, TILE
from stablebptt.kernels.cuda_rollout import Paths, Shared, make_evaluate, new_layout, work_size
from stablebptt.kernels.generics import State, is_of_states
from stablebptt.kernels.network import Network
from stablebptt.kernels.rollout import Episode, effort_weight
from stablebptt.tasks import joins
from stablebptt.tasks.engine import ALONE, Evaluation, Gradient, Keys, Loss
from stablebptt.tasks.errors import BackendError
from stablebptt.tasks.problems import Problem
from stablebptt.tasks.variants import Gates

# A small grid is intended: without this, Numba warns at every launch of a single run. It prints the message in bold.
warnings.filterwarnings("ignore", message=r"(\x1b\[1m)*Grid size")

# Threads per thread block. More would not find registers: the kernels use up to 255 of 65,536. (Simulated threads are slow.)
THREADS = 32 if SIMULATED else 256
# Most thread blocks that share the samples of one run. The batch alone decides, so sums always have the same parts.
MOST_GROUPS = 128
# Share of the device's memory for the activations of one launch (two run at a time). More runs need several launches.
PATH_SHARE = 0.4
MOST_BLOCKS = 65535
SIMULATED_SHARED, SIMULATED_MEMORY = 227 << 10, 1 << 30


@dataclass(frozen=True)
class Plan:
    """Where a kernel stores its arrays.

    Attributes
    ----------
    shared : which arrays lie in shared memory
    shared_bytes : size of that memory
    spill : numbers of a thread block's arena in global memory; 1 if it lies in shared memory
    episode : with a `Layout` as controller
    """

    shared: Shared
    shared_bytes: int
    spill: int
    episode: Episode


def plan(problem: Problem, variants: int, capacity: int) -> Plan:
    """Fill `capacity` bytes of shared memory with a thread block's arena first, then its weights, then its gradients.

    variants : number m of gradients, or 0 for a rollout alone
    """
    item, episode = np.dtype(problem.dtype).itemsize, episode_of(problem, padded=True)
    work = work_size(episode) + (bars_size(episode, variants) if variants else 0)
    sizes = [work, episode.controller.n_weights] + ([variants * problem.n_parameters] if variants else [])
    flags, used = [], 0
    for size in sizes:
        flags.append(used + size <= capacity // item)
        used += size if flags[-1] else 0
    shared = Shared(*flags)
    if not shared.weights:
        episode = episode_of(problem, padded=False)
    return Plan(shared, used * item, 1 if shared.arena else work, episode)


def episode_of(problem: Problem, *, padded: bool) -> Any:
    """The episode for the kernels on the device: time_weights (T+1,) in the problem's precision, a `Layout` as controller."""
    episode = problem.episode()
    weights = problem.time_weights.astype(problem.dtype)
    return replace(episode, time_weights=weights, controller=new_layout(episode, padded=padded))


class Queue:
    """A queue of work on the device, with memory on host and device that it reuses from launch to launch.

    Attributes
    ----------
    bytes_up, bytes_down : bytes copied so far
    """

    def __init__(self) -> None:
        self.stream = cuda.stream()
        self.bytes_up = self.bytes_down = 0
        self._device: dict[str, Any] = {}
        self._host: dict[str, np.ndarray] = {}

    def array(self, name: str, shape: tuple[int, ...], dtype: Any) -> Any:
        """An array on the device, with arbitrary content."""
        known = self._device.get(name)
        if known is None or known.shape != shape or known.dtype != dtype:
            self._device.pop(name, None)
            self._device[name] = cuda.device_array(shape, dtype, stream=self.stream)
        return self._device[name]

    def send(self, name: str, values: Any) -> Any:
        """Copy an array, or a list of n arrays as one array (n, ..), to the device."""
        first = np.asarray(values[0])
        shape, dtype = (len(values), *first.shape), first.dtype
        host, target = self._pinned(name, shape, dtype), self.array(name, shape, dtype)
        for number, row in enumerate(values):
            host[number] = row
        target.copy_to_device(host, stream=self.stream)
        self.bytes_up += host.nbytes
        return target

    def keep(self, name: str, values: np.ndarray) -> Any:
        """`send` for an array that rarely changes: it is copied only after a change."""
        host = self._host.get(name)
        if host is not None and host.shape == values.shape and host.dtype == values.dtype and np.array_equal(host, values):
            return self._device[name]
        return self.send(name, values)

    def fetch(self, name: str) -> np.ndarray:
        """Begin to copy an array back. It is valid after `wait`, until the next launch."""
        source = self._device[name]
        host = self._pinned(name, source.shape, source.dtype)
        source.copy_to_host(host, stream=self.stream)
        self.bytes_down += host.nbytes
        return host

    def wait(self) -> None:
        """Wait until all queued work is done."""
        self.stream.synchronize()

    def _pinned(self, name: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        known = self._host.get(name)
        if known is None or known.shape != shape or known.dtype != dtype:
            self._host[name] = cuda.pinned_array(shape, dtype)
        return self._host[name]


_first = threading.Lock()


def require() -> None:
    """Raise a BackendError that says what is missing if no device can compute."""
    with _first:  # a second thread would meet a driver that the first one is still starting
        found = SIMULATED or cuda.is_available()
    if not found:
        raise BackendError("backend 'cuda' finds no CUDA device and driver here; leave it out, or use a machine that has them")


def device_name() -> str:
    """Name of the device and number of its multiprocessors."""
    if SIMULATED:
        return "Numba's simulator"
    device = cuda.get_current_device()
    name = device.name.decode() if isinstance(device.name, bytes) else str(device.name)
    return f"{name}, {device.MULTIPROCESSOR_COUNT} multiprocessors"


@functools.cache
def shared_capacity() -> int:
    """Bytes of shared memory that a thread block may use."""
    if SIMULATED:
        return SIMULATED_SHARED
    return int(cuda.get_current_device().MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)


def free_bytes() -> int:
    """Bytes that a launch may take for activations."""
    if SIMULATED:
        return SIMULATED_MEMORY
    return int(PATH_SHARE * cuda.current_context().get_memory_info().total)


def launch(kernel: Any, grid: tuple[int, ...], queue: Queue, shared_bytes: int, arguments: tuple) -> None:
    """Launch a kernel that may need more shared memory than the default limit.

    The limit belongs to the kernel, not to the launch: what is set is the device's, whatever another thread launches meanwhile.
    """
    configured = kernel[grid, THREADS, queue.stream, shared_bytes]
    if not SIMULATED and not configured.pre_launch_callbacks:
        configured.pre_launch_callbacks.append(_allow_shared)
    configured(*arguments)


def _allow_shared(kernel: Any, configured: Any) -> None:
    from numba.cuda.cudadrv.driver import binding, driver

    function = kernel._codelibrary.get_cufunc()
    limit = binding.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    driver.cuKernelSetAttribute(limit, function.device.MAX_SHARED_MEMORY_PER_BLOCK_OPTIN, function.handle, function.device.id)


def on_device(part: Struct, queue: Queue, name: str) -> Struct:
    """A struct whose arrays lie on the device."""

    def moved(field: str, value: Any) -> Any:
        if isinstance(value, Struct):
            return on_device(value, queue, field)
        return queue.keep(field, value) if isinstance(value, np.ndarray) else value

    return type(part)(*(moved(f"{name}.{field}", getattr(part, field)) for field in type(part).fields))


class _Queues(threading.local):
    """Queues by number, per thread: threads may share a problem."""

    def __init__(self) -> None:
        self.known: dict[int, Queue] = {}


class Engine:
    """Computes a problem's rollouts and gradients on the device; see `engine.Engine`."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self._queues = _Queues()

    @functools.cached_property
    def _layers(self) -> np.ndarray:
        """Bounds (layers + 1,) of the arrays of parameters."""
        return joins.layers_of(self.problem)

    def prepare(self, x0: np.ndarray) -> None:
        """Nothing; see `engine.Engine`."""

    def evaluate(
        self, thetas: list[np.ndarray], x0s: list[np.ndarray], *, keys: Keys = None, paths: bool = False, queue: int = ALONE
    ) -> Iterator[Evaluation]:
        """Roll out S controllers, each from its own states (B, *state_shape); see `engine.Engine`."""
        groups = math.ceil(len(x0s[0]) / TILE)
        compute = self._paths if paths else self._losses
        return _split(lambda a, b: compute(a, b, groups, queue), thetas, x0s, MOST_BLOCKS // groups)

    def gradients(
        self,
        thetas: list[np.ndarray],
        x0s: list[np.ndarray],
        gates: Gates,
        *,
        keys: Keys = None,
        parts: bool = False,
        queue: int = ALONE,
    ) -> Iterator[Gradient]:
        """Gradients (n_parameters,) of S controllers, each for its own states (B, *state_shape); see `engine.Engine`."""
        names = ("joined",) * gates.is_combined + ("sums",) * (parts or not gates.is_combined)
        most = min(free_bytes() // path_bytes(self.problem, len(x0s[0])), MOST_BLOCKS)
        return _split(lambda a, b: self._gradients(a, b, gates, names, queue), thetas, x0s, most)

    def _losses(self, thetas: list[np.ndarray], x0s: list[np.ndarray], groups: int, number: int) -> Iterator[Evaluation]:
        queue = self._roll_out(thetas, x0s, groups, 0, self.queue(number))
        physics, effort = queue.fetch("losses.physics"), queue.fetch("losses.effort")

        def results() -> Iterator[Evaluation]:
            queue.wait()
            for row in range(len(thetas)):
                yield Evaluation(physics[row].astype(np.float64), effort[row].astype(np.float64))

        return results()

    def _paths(self, thetas: list[np.ndarray], x0s: list[np.ndarray], groups: int, number: int) -> Iterator[Evaluation]:
        problem, batch = self.problem, len(x0s[0])
        n, steps, path_rows = problem.n_state, problem.steps, problem.n_state + problem.n_control
        queue = self._roll_out(thetas, x0s, groups, path_rows, self.queue(number))
        path, physics, effort = (queue.fetch(f"rollout.{name}") for name in ("path", "physics", "effort"))

        def results() -> Iterator[Evaluation]:
            queue.wait()
            for row, slots in enumerate(path.reshape(len(thetas), groups, steps + 1, path_rows, TILE)):
                rows = slots.transpose(0, 3, 1, 2).reshape(groups * TILE, steps + 1, path_rows)[:batch]
                states = rows[:, :, :n].reshape(batch, steps + 1, *problem.state_shape)
                controls = rows[:, :-1, n:].reshape(batch, steps, *problem.control_shape)
                costs = physics[row].astype(np.float64), effort[row].astype(np.float64)
                yield Evaluation(*costs, states.copy(), controls.copy())

        return results()

    def _roll_out(self, thetas: list[np.ndarray], x0s: list[np.ndarray], groups: int, path_rows: int, queue: Queue) -> Queue:
        """Launch the rollouts of several runs."""
        memory, use = plan(self.problem, 0, shared_capacity()), "rollout" if path_rows else "losses"
        kernel = make_evaluate(from_dtype(np.dtype(self.problem.dtype)), memory.shared)
        arguments = self._given(queue, memory, thetas, x0s, use)
        paths = self._paths_on(queue, memory, (len(thetas), len(x0s[0]), groups, path_rows), use)
        launch(kernel, (groups, len(thetas)), queue, memory.shared_bytes, (*arguments, paths))
        return queue

    def _gradients(
        self, thetas: list[np.ndarray], x0s: list[np.ndarray], gates: Gates, names: tuple[str, ...], number: int
    ) -> Iterator[Gradient]:
        """Launch the gradients of several runs; `names` of the arrays to copy back."""
        problem, queue, runs, batch, adjoints = self.problem, self.queue(number), len(thetas), len(x0s[0]), len(gates.physics)
        dtype, n, groups = np.dtype(problem.dtype), problem.n_parameters, group_count(batch)
        memory = plan(problem, adjoints, shared_capacity())
        device_gates = DeviceGates(
            queue.keep("physics_gates", gates.physics),
            queue.keep("network_gates", gates.network),
            queue.keep("cost_weights", (problem.time_weights / batch).astype(dtype)),
            dtype.type(effort_weight(problem.regularization, batch * problem.steps * problem.n_control)),
        )
        gradients = queue.array("gradients", (runs, groups, adjoints * n), dtype)
        sums, joined = queue.array("sums", (runs, adjoints, n), dtype), queue.array("joined", (runs, n), dtype)
        found = queue.array("results", (runs, 6), dtype)
        arguments = self._given(queue, memory, thetas, x0s, "gradient")
        paths = self._paths_on(queue, memory, (runs, batch, groups, memory.episode.controller.rows), "gradient")
        kernel = make_gradient(from_dtype(dtype), memory.shared)
        launch(kernel, (groups, runs), queue, memory.shared_bytes, (*arguments, device_gates, paths, gradients))
        launch(make_join(from_dtype(dtype)), (runs,), queue, THREADS * dtype.itemsize, (gradients, sums, joined, found))
        fetched = {name: queue.fetch(name) for name in (*names, "results")}
        fetched |= {name: queue.fetch(f"gradient.{name}") for name in ("physics", "effort")}

        def results() -> Iterator[Gradient]:
            queue.wait()
            for row in range(runs):
                yield self._gradient({name: values[row] for name, values in fetched.items()}, gates)

        return results()

    def _gradient(self, found: dict[str, np.ndarray], gates: Gates) -> Gradient:
        """The gradient of one run, from the arrays of the kernels."""
        physics, effort = (float(found[name].mean(dtype=np.float64)) for name in ("physics", "effort"))
        total, _ = self.problem.total(physics, effort)
        loss = Loss(total, physics) if math.isfinite(physics) else Loss(math.nan, math.nan)
        results = Results(*found["results"].astype(np.float64).tolist())
        if gates.join is None:
            return Gradient(found["sums"][0], loss, results.top_r * results.top_r * results.regular2)
        if not gates.is_combined:
            regular, modified = found["sums"]
            value = np.empty_like(regular)
            joined = joins.join(gates.join, regular, modified, self._layers, value)
            return Gradient(value, loss, joined.norm2, regular, modified, joined.cosine)
        norms = math.sqrt(results.regular2) * math.sqrt(results.modified2)
        cosine = results.product / norms if norms > 0 else math.nan
        norm2 = results.top_m * results.top_m * results.joined2
        parts = found.get("sums", (None, None))
        return Gradient(found["joined"], loss, norm2, parts[0], parts[1], cosine)

    def _given(self, queue: Queue, memory: Plan, thetas: list[np.ndarray], x0s: list[np.ndarray], use: str) -> tuple:
        """First arguments of both kernels: episode, theta, x0. Each `use` has its own arrays, as their sizes differ."""
        flat = [x0.reshape(len(x0), self.problem.n_state) for x0 in x0s]
        return on_device(memory.episode, queue, use), queue.send("theta", thetas), queue.send(f"{use}.x0", flat)

    def _paths_on(self, queue: Queue, memory: Plan, sizes: tuple[int, int, int, int], use: str) -> Paths:
        """Arrays for the paths and spilled arenas of S runs; sizes (S, B, groups, rows of a path to store)."""
        (runs, batch, groups, path_rows), dtype = sizes, np.dtype(self.problem.dtype)
        shape = (runs * groups, self.problem.steps + 1, path_rows * TILE) if path_rows else (1, 1, 1)
        return Paths(
            numbers=queue.array(f"{use}.path", shape, dtype),
            kept=path_rows,
            physics=queue.array(f"{use}.physics", (runs, batch), dtype),
            effort=queue.array(f"{use}.effort", (runs, batch), dtype),
            spill=queue.array(f"{use}.spill", (runs * groups if memory.spill > 1 else 1, memory.spill), dtype),
        )

    def queue(self, number: int) -> Queue:
        """This thread's queue with this number."""
        if number not in self._queues.known:
            self._queues.known[number] = Queue()
        return self._queues.known[number]


def _split(compute: Callable, thetas: list[np.ndarray], x0s: list[np.ndarray], most: int) -> Iterator[Any]:
    """Compute for at most `most` runs at a time. If all runs fit, the work begins at once."""
    most = max(1, most)
    if len(thetas) <= most:
        return compute(thetas, x0s)
    starts = range(0, len(thetas), most)
    return (result for first in starts for result in compute(thetas[first : first + most], x0s[first : first + most]))


def group_count(batch: int) -> int:
    """Thread blocks that share the samples of one run."""
    return min(math.ceil(batch / TILE), MOST_GROUPS)


def path_bytes(problem: Problem, batch: int) -> int:
    """Bytes on the device for the activations of one run."""
    rows = episode_of(problem, padded=True).controller.rows
    return group_count(batch) * (problem.steps + 1) * rows * TILE * np.dtype(problem.dtype).itemsize


def to_device(problem: Problem) -> Problem:
    """The same problem, computed on the device.

    Raises
    ------
    BackendError
        If there is no device, or the controller is not a network of this package.
    """
    require()
    if type(problem.controller) is not Network:
        name = type(problem.controller).__name__
        raise BackendError(f"backend 'cuda' runs the networks of this package; {name} is a controller of your own")
    missing = {
        "observe": type(problem.observation) is not State,
        "costs of time and control": not is_of_states(problem.loss_function),
        "vary, disturb and noise": problem.is_random,
    }
    if found := [name for name, there in missing.items() if there]:
        raise BackendError(f"backend 'cuda' does not compute {' and '.join(found)}; use the CPU")
    if path_bytes(problem, 1) > free_bytes():
        raise BackendError(f"{problem.title}: the activations of {problem.steps} time steps do not fit into the device's memory")
    return replace(problem, backend="cuda")
