"""Problems as environments of Gymnasium, one path or many at once; docs/adding_a_system.md, "From Gymnasium".

An action is a control, in units of one's choice. The rewards of an episode add up to minus the loss of its path. Importing this
module registers the published problems (`stablebptt/CartPole-v0`, ..); it needs the package gymnasium, which the rest of
stablebptt does not.
"""

from functools import partial
from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

from stablebptt.interop.paths import Paths
from stablebptt.tasks import arguments, registry
from stablebptt.tasks.problems import Problem
from stablebptt.tasks.settings import LARGEST_SEED

NAMES = {"cartpole": "CartPole"}  # the other names are those of the tasks, with capitals
# Gymnasium warns of observations without limits; a state beyond this one says nothing to anybody.
LARGEST = float(np.finfo(np.float32).max)
OPTIONS = ("state",)  # of `reset`


def environment_id(task: str) -> str:
    """Gymnasium's name of a task, such as "stablebptt/CartPole-v0"."""
    return f"stablebptt/{NAMES.get(task) or ''.join(word.capitalize() for word in task.split('_'))}-v0"


def make_env(problem: Problem, unit: float = 1.0) -> "ProblemEnv":
    """The problem as a `gymnasium.Env`; `unit` is the control that an action of 1 stands for."""
    return ProblemEnv(problem, unit)


def make_vec_env(problem: Problem, num_envs: int, unit: float = 1.0) -> "ProblemVectorEnv":
    """Many paths of the problem as a `gymnasium.vector.VectorEnv`; one call of the kernels steps all of them."""
    return ProblemVectorEnv(problem, num_envs, unit)


def make_task(*, task: str, unit: float = 1.0, **options: Any) -> "ProblemEnv":
    """The environment of a task with options: what `gymnasium.make("stablebptt/CartPole-v0", poles=2)` calls."""
    return make_env(registry.problem(task, **options), unit)


def make_vec_task(*, task: str, num_envs: int, unit: float = 1.0, **options: Any) -> "ProblemVectorEnv":
    """Many paths of a task with options: what `gymnasium.make_vec("stablebptt/CartPole-v0", num_envs=8, poles=2)` calls."""
    return make_vec_env(registry.problem(task, **options), num_envs, unit)


class ProblemEnv(gymnasium.Env[np.ndarray, np.ndarray]):
    """A problem as an environment: an episode is a path of T time steps, then truncated.

    `reset(seed=3)` begins where ``problem.sample(1, seed=3)`` does, and what else is random is that of
    ``problem.rollout(.., seed=3)``. Without a seed one is drawn. ``options={"state": x0}`` begins at x0 (*state_shape).

    `info` has the state (*state_shape) and, of `reset`, the seed of the episode.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": []}

    def __init__(self, problem: Problem, unit: float = 1.0) -> None:
        self.problem, self.unit = problem, _positive(unit)
        self.observation_space, self.action_space = _spaces(problem, self.unit)
        self.spec = EnvSpec(environment_id(problem.task), partial(make_env, problem, unit))  # makes this one again
        self._paths = Paths(problem, 1)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode."""
        super().reset(seed=seed)
        state = _given(options)
        if state is not None:
            state = arguments.array("state", state, self.problem.state_shape, self.problem.dtype)[None]
        seed = _begin(self._paths, self.np_random, seed, state)
        return self._paths.seen()[0], {"state": self._paths.states[0], "seed": seed}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Do a time step under an action (*control_shape); the control is clipped to its limits."""
        action = arguments.array("the action", action, self.problem.control_shape, self.problem.dtype)
        share = float(self._paths.step(self.unit * action[None])[0])
        return self._paths.seen()[0], -share, False, self._paths.over, {"state": self._paths.states[0]}


class ProblemVectorEnv(gymnasium.vector.VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """Many paths of a problem, which begin and end together; see `ProblemEnv`.

    `reset(seed=3)` begins where ``problem.sample(num_envs, seed=3)`` does; ``options={"state": x0}`` at x0 (num_envs,
    *state_shape). After the last time step the next `step` begins new paths (Gymnasium's mode NEXT_STEP).
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": [], "autoreset_mode": AutoresetMode.NEXT_STEP}

    def __init__(self, problem: Problem, num_envs: int, unit: float = 1.0) -> None:
        self._paths = Paths(problem, num_envs)
        self.problem, self.num_envs, self.unit = problem, self._paths.count, _positive(unit)
        self.single_observation_space, self.single_action_space = _spaces(problem, self.unit)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin new paths."""
        super().reset(seed=seed)
        seed = _begin(self._paths, self.np_random, seed, _given(options))
        return self._paths.seen(), self._infos(state=self._paths.states, seed=np.full(self.num_envs, seed))

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Do a time step under actions (num_envs, *control_shape); controls are clipped to their limits."""
        nobody = np.zeros(self.num_envs, bool)
        if self._paths.over:
            seen, infos = self.reset()
            return seen, np.zeros(self.num_envs), nobody, nobody.copy(), infos
        shape = self.num_envs, *self.problem.control_shape
        rewards = -self._paths.step(self.unit * arguments.array("the actions", actions, shape, self.problem.dtype))
        over = np.full(self.num_envs, self._paths.over)
        return self._paths.seen(), rewards, nobody, over, self._infos(state=self._paths.states)

    def _infos(self, **values: np.ndarray) -> dict[str, Any]:
        """Values of all paths; Gymnasium wants to know who has one."""
        return values | {f"_{name}": np.ones(self.num_envs, bool) for name in values}


def _positive(unit: float) -> float:
    return arguments.real("unit", unit, above=0)


def _spaces(problem: Problem, unit: float) -> tuple[Box, Box]:
    """Spaces of what a controller sees (n_seen,), and of actions (*control_shape).

    Controls without limits have none in units of 1; in a unit that was chosen, -1 to 1 is where to look for actions.
    """
    seen = Box(-LARGEST, LARGEST, (problem.n_seen,), problem.dtype)
    widest = np.inf if unit == 1 else unit
    limits = np.full((2, problem.n_control), [[-widest], [widest]]) if problem.limits is None else np.asarray(problem.limits)
    low, high = (limits / unit).astype(problem.dtype).reshape(2, *problem.control_shape)
    return seen, Box(low, high, dtype=problem.dtype)


def _given(options: dict[str, Any] | None) -> Any:
    """The state of `options`; None if there is none."""
    arguments.known("reset", options or {}, OPTIONS)
    return (options or {}).get("state")


def _begin(paths: Paths, random: np.random.Generator, seed: int | None, x0: Any) -> int:
    """Begin paths at x0 (B, *state_shape), or where the seed says; by default it is drawn. Return it."""
    seed = int(random.integers(LARGEST_SEED, endpoint=True)) if seed is None else seed
    paths.begin(paths.problem.sample(paths.count, seed) if x0 is None else x0, seed)
    return seed


for _task in registry.TASKS:
    if environment_id(_task) not in gymnasium.registry:
        gymnasium.register(
            environment_id(_task),
            f"{__name__}:make_task",
            kwargs={"task": _task},
            vector_entry_point=f"{__name__}:make_vec_task",
        )
