"""Films of the systems of docs/systems.md, untrained beside trained: ``python docs/system_films.py FOLDER``.

FOLDER holds their runs, as docs/compare_systems.py trains them. Every system says which lines a state draws; the rest is
`stablebptt.tasks.pictures.films`.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stablebptt.tasks.pictures.films import save_film
from stablebptt.tasks.pictures.rollouts import colour
from stablebptt.tasks.rollouts import Rollouts, load_rollouts
from stablebptt.tasks.task import Task

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS / "examples"))
import acrobot  # noqa: E402
import ball  # noqa: E402
import burgers  # noqa: E402
import quadrotor  # noqa: E402

Line = tuple[Sequence[float], Sequence[float]]
Lines = Callable[[np.ndarray, int], list[Line]]


def chain_of(x: float, angles: np.ndarray, length: float) -> Line:
    """Links from (x, 0) on, each at an angle from upright."""
    places = x + length * np.cumsum([0.0, *np.sin(angles)]), length * np.cumsum([0.0, *np.cos(angles)])
    return tuple(place.tolist() for place in places)  # type: ignore[return-value]


def acrobot_lines(state: np.ndarray, step: int) -> list[Line]:
    return [chain_of(0.0, state[:, 0], acrobot.Acrobot.length_1)]


def ball_lines(state: np.ndarray, step: int) -> list[Line]:
    """The ball, where it is to be at the end, and the ground."""
    return [([state[0, 0]], [state[0, 1]]), ([ball.Arrived.x], [ball.Arrived.y]), ([-9, 9], [0, 0])]


def quadrotor_lines(state: np.ndarray, step: int) -> list[Line]:
    """The bar, and the waypoint of now."""
    (x, y, angle), arm = state[0], quadrotor.Quadrotor.arm
    wing, path = arm * np.array([np.cos(angle), np.sin(angle)]), quadrotor.make_problem().loss_function.path
    return [([x - wing[0], x + wing[0]], [y - wing[1], y + wing[1]]), ([path[step, 0]], [path[step, 1]])]


def burgers_lines(state: np.ndarray, step: int) -> list[Line]:
    """u, and the wave that it is to follow."""
    return [(burgers.PLACES, state), (burgers.PLACES, burgers.wave(100)[step])]


def chain_lines(state: np.ndarray, step: int) -> list[Line]:
    """The links, and the cart."""
    return [chain_of(state[0, 0], state[1:, 0], 1.0), ([state[0, 0]], [0])]


# Name: lines, limits along both axes, labels, whether a length is the same along both axes, and every how many steps a picture.
SYSTEMS: dict[str, tuple[Lines, tuple[float, ...], tuple[str, str], bool, int]] = {
    "acrobot": (acrobot_lines, (-1.1, 1.1, -1.1, 1.1), ("place [m]", "height [m]"), True, 2),
    "ball": (ball_lines, (-1.2, 1.2, -0.1, 1.6), ("x [m]", "y [m]"), True, 1),
    "quadrotor": (quadrotor_lines, (-1.2, 1.2, -1.2, 1.2), ("x [m]", "y [m]"), True, 1),
    "burgers": (burgers_lines, (0, 2 * np.pi, -1.2, 1.2), ("place on the ring [m]", "u"), False, 2),
    "pendulum_chain": (chain_lines, (-1.6, 1.6, -0.4, 3.2), ("place [m]", "height [m]"), True, 1),
}


def moving(name: str) -> Callable[[Any, Rollouts, int], list[Callable[[int], None]]]:
    """The film of a system, as `Task.film` asks for it."""
    lines, limits, labels, equal, _ = SYSTEMS[name]

    def film(panels: Any, rollouts: Rollouts, sample: int) -> list[Callable[[int], None]]:
        updates = []
        for axes, states in zip(panels, rollouts.states[:, sample].astype(float)):
            axes.set(xlim=limits[:2], ylim=limits[2:], xlabel=labels[0], aspect="equal" if equal else "auto")
            looks = ["o-", "x", "-"] if name != "burgers" else ["-", "--"]
            drawn = [axes.plot([], [], look, color=colour(k), linewidth=2)[0] for k, look in zip(range(3), looks)]

            def move(step: int, states: Any = states, drawn: Any = drawn) -> None:
                for line, (x, y) in zip(drawn, lines(states[step], step)):
                    line.set_data(x, y)

            updates.append(move)
        panels[0].set_ylabel(labels[1])
        return updates

    return film


def save(name: str, folder: Path) -> Path:
    """The film of the first run with R, which wins."""
    path = DOCS / "images" / f"{name.replace('_', '-')}.gif"
    rollouts = load_rollouts(folder / f"{name}-R" / "seed_0.h5")
    task = Task(name=name, summary=rollouts.problem.title, options=(), make=lambda: rollouts.problem, film=moving(name))
    save_film(rollouts, 0, path, every=SYSTEMS[name][-1], dpi=60, task=task)
    return path


if __name__ == "__main__":
    for each in SYSTEMS:
        print(save(each, Path(sys.argv[1])))
