"""Problems on a CUDA device: many trainings in one launch; docs/gpu.md.

Imported only where the backend "cuda" is asked for.
"""

import functools
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numba import cuda, from_dtype

from stablebptt.adjoint.cuda_sweep import Gates as DeviceGates
from stablebptt.adjoint.cuda_sweep import bars_size, make_gradient, make_join
from stablebptt.kernels.cuda_block import SIMULATED, TILE
from stablebptt.kernels.cuda_rollout import make_evaluate, network_table, work_size
from stablebptt.kernels.generics import sample_scratch
from stablebptt.kernels.network import Network
from stablebptt.kernels.structs import Struct
from stablebptt.tasks.errors import BackendError
from stablebptt.tasks.problems import Gradient, Loss, PathSpace, Problem
from stablebptt.tasks.variants import Gates

# One training fills one block of a device: no need to say so at every launch.
warnings.filterwarnings("ignore", message="Grid size")

# What the kernels compute layer by layer. (A class made of one of these may compute something else.)
# More threads would not find registers: the kernels use up to 255 of 65,536. (The simulator's threads are expensive.)
THREADS = 32 if SIMULATED else 256
# Blocks that share the samples of one training: decided by its batch alone, so that sums are always cut alike.
MOST_GROUPS = 128
# The lane of single calls, which may come between a launch of many and the last of its results.
ALONE = -1
# Share of the device's memory for the activations of one launch (there are two at a time); more trainings take several launches.
PATH_SHARE = 0.4
MOST_BLOCKS = 65535
SIMULATED_SHARED, SIMULATED_MEMORY = 227 << 10, 1 << 30


@dataclass(frozen=True)
class Plan:
    """Where a kernel keeps what: flags for the kernel, the layers' table, sizes."""

    shared: tuple[bool, ...]
    shared_bytes: int
    spill: int
    table: np.ndarray
    rows: int
    n_weights: int


def plan(problem: Problem, variants: int, capacity: int) -> Plan:
    """Fill `capacity` bytes of shared memory with a block's work space first, then its weights, then its gradients.

    variants: gradients m of the kernel, or 0 if it only rolls out.
    """
    n_state, n_control, scratch = problem.n_state, problem.n_control, sample_scratch(problem.system)
    item = np.dtype(problem.dtype).itemsize
    table, rows, weights = network_table(problem.controller, n_state, n_control, True)
    work = work_size(rows, n_state, n_control, scratch) + (bars_size(rows, n_state, n_control, variants) if variants else 0)
    sizes = [work, weights] + ([variants * problem.n_parameters] if variants else [])
    flags, used = [], 0
    for size in sizes:
        flags.append(used + size <= capacity // item)
        used += size if flags[-1] else 0
    if not flags[1]:
        table, rows, weights = network_table(problem.controller, n_state, n_control, False)
    return Plan(tuple(flags), used * item, 1 if flags[0] else work, table, rows, weights)


class Queue:
    """A queue of work on the device, with the memory on both sides that it keeps from launch to launch.

    bytes_up, bytes_down : what was copied so far
    """

    def __init__(self) -> None:
        self.stream = cuda.stream()
        self.bytes_up = self.bytes_down = 0
        self._device: dict[str, Any] = {}
        self._host: dict[str, np.ndarray] = {}

    def array(self, name: str, shape: tuple[int, ...], dtype: Any) -> Any:
        """An array on the device, whatever it holds."""
        known = self._device.get(name)
        if known is None or known.shape != shape or known.dtype != dtype:
            self._device.pop(name, None)
            self._device[name] = cuda.device_array(shape, dtype, stream=self.stream)
        return self._device[name]

    def send(self, name: str, values: Any) -> Any:
        """Copy an array, or a list of arrays side by side, to the device."""
        first = np.asarray(values[0])
        shape, dtype = (len(values), *first.shape), first.dtype
        host, target = self._pinned(name, shape, dtype), self.array(name, shape, dtype)
        for number, row in enumerate(values):
            host[number] = row
        target.copy_to_device(host, stream=self.stream)
        self.bytes_up += host.nbytes
        return target

    def keep(self, name: str, values: np.ndarray) -> Any:
        """`send` for what rarely changes."""
        host = self._host.get(name)
        if host is not None and host.shape == values.shape and host.dtype == values.dtype and np.array_equal(host, values):
            return self._device[name]
        return self.send(name, values)

    def fetch(self, name: str) -> np.ndarray:
        """Begin to copy an array back; it is there after `wait`, until the next launch."""
        source = self._device[name]
        host = self._pinned(name, source.shape, source.dtype)
        source.copy_to_host(host, stream=self.stream)
        self.bytes_down += host.nbytes
        return host

    def wait(self) -> None:
        """Wait until all that was begun is done."""
        self.stream.synchronize()

    def _pinned(self, name: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        known = self._host.get(name)
        if known is None or known.shape != shape or known.dtype != dtype:
            self._host[name] = cuda.pinned_array(shape, dtype)
        return self._host[name]


def require() -> None:
    """Raise BackendError, with what is missing, if nothing can be computed on a device."""
    if not SIMULATED and not cuda.is_available():
        raise BackendError("backend 'cuda' finds no CUDA device and driver here; leave it out, or use a machine that has them")


def device_name() -> str:
    """What the device calls itself, and how much of it there is."""
    if SIMULATED:
        return "Numba's simulator"
    device = cuda.get_current_device()
    name = device.name.decode() if isinstance(device.name, bytes) else str(device.name)
    return f"{name}, {device.MULTIPROCESSOR_COUNT} multiprocessors"


@functools.cache
def shared_capacity() -> int:
    """Bytes of shared memory that a block may ask for."""
    if SIMULATED:
        return SIMULATED_SHARED
    return int(cuda.get_current_device().MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)


def free_bytes() -> int:
    """Bytes that a launch may take for activations."""
    if SIMULATED:
        return SIMULATED_MEMORY
    return int(PATH_SHARE * cuda.current_context().get_memory_info().total)


def launch(kernel: Any, grid: tuple[int, ...], queue: Queue, shared_bytes: int, arguments: tuple) -> None:
    """Launch a kernel that may need more shared memory than a block gets unasked."""
    configured = kernel[grid, THREADS, queue.stream, shared_bytes]
    if not SIMULATED and not configured.pre_launch_callbacks:
        configured.pre_launch_callbacks.append(_allow_shared)
    configured(*arguments)


def _allow_shared(kernel: Any, configured: Any) -> None:
    from numba.cuda.cudadrv.driver import binding, driver

    function = kernel._codelibrary.get_cufunc()
    limit = binding.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    driver.cuKernelSetAttribute(limit, configured.sharedmem, function.handle, function.device.id)


def on_device(part: Struct, queue: Queue, name: str) -> Struct:
    """A struct whose arrays lie on the device."""
    values = ((field, getattr(part, field)) for field in type(part).fields)
    return type(part)(*(queue.keep(f"{name}.{field}", v) if isinstance(v, np.ndarray) else v for field, v in values))


@dataclass(frozen=True, eq=False)
class CudaProblem(Problem):
    """A problem whose rollouts and gradients are computed on the device; made by `to_device`."""

    @property
    def backend(self) -> str:
        return "cuda"

    def parts(self, theta: np.ndarray, x0: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return next(self.all_parts([theta], [x0], ALONE))

    def differentiate(self, theta: np.ndarray, x0: np.ndarray, opened: Gates) -> Gradient:
        return next(self._differentiate([theta], [x0], opened, ALONE, ("joined", "sums") if opened.joined else ("sums",)))

    def all_parts(self, thetas: list[np.ndarray], x0s: list[np.ndarray], lane: int = 0) -> Iterator[Any]:
        groups = math.ceil(len(x0s[0]) / TILE)
        return self._split(lambda a, b: self._parts(a, b, lane, groups), thetas, x0s, MOST_BLOCKS // groups)

    def differentiate_all(
        self, thetas: list[np.ndarray], x0s: list[np.ndarray], opened: Gates, lane: int = 0
    ) -> Iterator[Gradient]:
        names = ("joined",) if opened.joined else ("sums",)
        most = min(free_bytes() // self._path_bytes(len(x0s[0])), MOST_BLOCKS)
        return self._split(lambda a, b: self._differentiate(a, b, opened, lane, names), thetas, x0s, most)

    def _split(self, compute: Callable, thetas: list[np.ndarray], x0s: list[np.ndarray], most: int) -> Iterator[Any]:
        """Compute for at most so many trainings at once; if that is all of them, begin at once."""
        most = max(1, most)
        if len(thetas) <= most:
            return compute(thetas, x0s)
        starts = range(0, len(thetas), most)
        return (result for first in starts for result in compute(thetas[first : first + most], x0s[first : first + most]))

    def _parts(self, thetas: list[np.ndarray], x0s: list[np.ndarray], lane: int, groups: int) -> Iterator[Any]:
        queue = self._follow(lane, thetas, x0s, groups, 0)
        physics, effort = queue.fetch("losses.physics"), queue.fetch("losses.effort")

        def results() -> Iterator[Any]:
            queue.wait()
            for row in range(len(thetas)):
                yield physics[row].astype(np.float64), effort[row].astype(np.float64)

        return results()

    def _evaluate(self, theta: np.ndarray, x0: np.ndarray) -> PathSpace:
        batch, kept = len(x0), self.n_state + self.n_control
        groups = math.ceil(batch / TILE)
        queue = self._follow(ALONE, [theta], [x0], groups, kept)
        path, physics, effort = (queue.fetch(f"rollout.{name}") for name in ("path", "physics", "effort"))
        queue.wait()
        rows = path.reshape(groups, self.steps + 1, kept, TILE).transpose(1, 0, 3, 2)
        rows = rows.reshape(self.steps + 1, groups * TILE, kept)[:, :batch]
        states, controls = rows[:, :, : self.n_state].copy(), rows[:-1, :, self.n_state :].copy()
        nothing = np.zeros(0, self.dtype)
        return PathSpace(nothing, states, controls, physics[0].astype(np.float64), effort[0].astype(np.float64), nothing)

    def _follow(self, lane: int, thetas: list[np.ndarray], x0s: list[np.ndarray], groups: int, kept: int) -> Queue:
        """Launch the rollouts of several trainings."""
        queue, chosen = self._queue(lane), plan(self, 0, shared_capacity())
        kernel = make_evaluate(from_dtype(np.dtype(self.dtype)), *chosen.shared)
        arguments = self._arguments(queue, chosen, thetas, x0s, groups, kept, "rollout" if kept else "losses")
        launch(kernel, (groups, len(thetas)), queue, chosen.shared_bytes, (*arguments, kept))
        return queue

    def _differentiate(
        self, thetas: list[np.ndarray], x0s: list[np.ndarray], opened: Gates, lane: int, names: tuple[str, ...]
    ) -> Iterator[Gradient]:
        """Launch the gradients of several trainings; `names` of what is copied back."""
        queue, trainings, batch, variants = self._queue(lane), len(thetas), len(x0s[0]), len(opened.physics)
        kind, n, groups = np.dtype(self.dtype), self.n_parameters, self._groups(len(x0s[0]))
        chosen = plan(self, variants, shared_capacity())
        gates = DeviceGates(
            queue.keep("physics_gates", opened.physics),
            queue.keep("network_gates", opened.network),
            queue.keep("cost_weights", (self.time_weights / batch).astype(kind)),
            self.effort_weight(batch),
        )
        gradients = queue.array("gradients", (trainings, groups, variants * n), kind)
        sums, joined = queue.array("sums", (trainings, variants, n), kind), queue.array("joined", (trainings, n), kind)
        found = queue.array("results", (trainings, 6), kind)
        arguments = self._arguments(queue, chosen, thetas, x0s, groups, chosen.rows, "gradient")
        kernel = make_gradient(from_dtype(kind), *chosen.shared)
        launch(kernel, (groups, trainings), queue, chosen.shared_bytes, (*arguments, gates, gradients))
        launch(make_join(from_dtype(kind)), (trainings,), queue, THREADS * kind.itemsize, (gradients, sums, joined, found))
        fetched = {name: queue.fetch(name) for name in (*names, "results")}
        fetched |= {name: queue.fetch(f"gradient.{name}") for name in ("physics", "effort")}

        def results() -> Iterator[Gradient]:
            queue.wait()
            for row in range(trainings):
                yield self._gradient({name: values[row] for name, values in fetched.items()}, opened)

        return results()

    def _gradient(self, found: dict[str, np.ndarray], opened: Gates) -> Gradient:
        """One training's gradient from what the kernels left."""
        physics, effort = (float(found[name].mean(dtype=np.float64)) for name in ("physics", "effort"))
        total, _ = self.total(physics, effort)
        loss = Loss(total, physics) if math.isfinite(physics) else Loss(math.nan, math.nan)
        top_r, top_m, rr, mm, rm, cc = found["results"].astype(np.float64).tolist()
        if not opened.joined:
            return Gradient(found["sums"][0], loss, top_r * top_r * rr)
        norms = math.sqrt(rr) * math.sqrt(mm)
        regular, modified = found["sums"] if "sums" in found else (None, None)
        return Gradient(found["joined"], loss, top_m * top_m * cc, regular, modified, rm / norms if norms > 0 else math.nan)

    def _arguments(
        self, queue: Queue, chosen: Plan, thetas: list[np.ndarray], x0s: list[np.ndarray], groups: int, kept: int, use: str
    ) -> tuple:
        """What both kernels take first; arrays that differ in size are kept for every `use`."""
        trainings, batch, kind = len(thetas), len(x0s[0]), np.dtype(self.dtype)
        slots = trainings * groups
        path_shape = (slots, self.steps + 1, kept * TILE) if kept else (1, 1, 1)
        return (
            on_device(self.system, queue, "system"),
            on_device(self.loss_function, queue, "loss"),
            queue.send("theta", thetas),
            queue.send(f"{use}.x0", [x0.reshape(batch, self.n_state) for x0 in x0s]),
            queue.keep("time_weights", self.time_weights.astype(kind)),
            queue.keep(f"{use}.table", chosen.table),
            chosen.rows,
            chosen.n_weights,
            self.n_control,
            sample_scratch(self.system),
            queue.array(f"{use}.path", path_shape, kind),
            queue.array(f"{use}.physics", (trainings, batch), kind),
            queue.array(f"{use}.effort", (trainings, batch), kind),
            queue.array(f"{use}.spill", (slots if chosen.spill > 1 else 1, chosen.spill), kind),
        )

    def _groups(self, batch: int) -> int:
        return min(math.ceil(batch / TILE), MOST_GROUPS)

    def _path_bytes(self, batch: int) -> int:
        """Memory on the device for the activations of one training."""
        _, rows, _ = network_table(self.controller, self.n_state, self.n_control, True)
        return self._groups(batch) * (self.steps + 1) * rows * TILE * np.dtype(self.dtype).itemsize

    def _queue(self, lane: int) -> Queue:
        queues = self._spaces.queues
        if lane not in queues:
            queues[lane] = Queue()
        return queues[lane]


def to_device(problem: Problem) -> CudaProblem:
    """The same problem, computed on the device.

    Raises
    ------
    BackendError
        If there is no device, or the controller is none of this package's networks.
    """
    require()
    if type(problem.controller) is not Network:
        name = type(problem.controller).__name__
        raise BackendError(f"backend 'cuda' runs the networks of this package; {name} is a controller of your own")
    values = {f.name: getattr(problem, f.name) for f in fields(problem) if f.name != "_spaces"}
    made = CudaProblem(**values)
    if made._path_bytes(1) > free_bytes():
        raise BackendError(f"{problem.title}: the activations of {problem.steps} time steps do not fit into the device's memory")
    return made
