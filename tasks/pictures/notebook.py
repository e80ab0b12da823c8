"""What a run, a rollout and a gradient look like in a notebook: short words, a table, a learning curve, pictures and films."""

import base64
import html
import tempfile
from pathlib import Path as FilePath
from typing import Any

import numpy as np

from stablebptt.data.run_file import best, evaluated, last
from stablebptt.tasks import registry

PHASES = ("untrained", "trained")


class Film:
    """Rollouts of one initial state as a film, which a notebook plays."""

    def __init__(self, rollouts: Any, sample: int, **options: Any) -> None:
        self.rollouts, self.sample, self.options = rollouts, sample, options

    def save(self, path: str | FilePath) -> int:
        """Write the film to a .gif or .mp4 file; the number of its pictures."""
        from stablebptt.tasks.pictures.films import save_film

        return save_film(self.rollouts, self.sample, FilePath(path), **self.options)

    def _repr_html_(self) -> str:
        with tempfile.TemporaryDirectory() as folder:
            path = FilePath(folder) / "film.gif"
            self.save(path)
            return _image(path.read_bytes(), "gif")


def facts(run: Any) -> dict[str, Any]:
    """A run in a few words and numbers."""
    done, (at, loss), (epoch, lowest) = len(run.history["epoch"]), last(run.history), best(run.history)
    latest = f"{loss:.4g}{f' (epoch {at})' * (at < done)}" if at else "none"
    found = {
        "problem": registry.title(run.config),
        "variant": run.config["variant"],
        "seed": run.config["seed"],
        "epochs": f"{done} of {run.config['epochs']}",
        "status": run.status,
        "test loss": latest if np.isnan(lowest) else f"{latest}, lowest {lowest:.4g} (epoch {epoch})",
    }
    return {name: str(value) for name, value in found.items()}


def told(run: Any) -> str:
    """A run in three lines."""
    found = facts(run)
    first = f"Run of {found['problem']}: variant {found['variant']}, seed {found['seed']}"
    return f"{first}\n  {found['epochs']} epochs, {found['status']}\n  test loss {found['test loss']}"


def table(run: Any) -> str:
    """A run as an HTML table with its learning curve."""
    rows = "".join(f"<tr><th>{name}</th><td>{html.escape(value)}</td></tr>" for name, value in facts(run).items())
    curve = _image(learning_curve(run)._repr_png_(), "png") if evaluated(run.history).any() else ""
    return f"<table>{rows}</table>{curve}"


def learning_curve(run: Any) -> Any:
    """The losses over the epochs that were evaluated, in a small picture."""
    from stablebptt.tasks.pictures.curves import PALETTE, new_figure

    figure = new_figure(3.6, 2.2)
    axes = figure.subplots()
    history = {name: values[evaluated(run.history)] for name, values in run.history.items()}
    for name, colour in (("train_loss", PALETTE[1]), ("test_loss", PALETTE[0])):
        axes.plot(history["epoch"], history[name], ".-", color=colour, label=name.replace("_", " "))
    losses = history["test_loss"]
    axes.set(xlabel="epoch", yscale="log" if 0 < 10 * losses.min() < losses.max() else "linear")
    axes.legend(fontsize="small", frameon=False)
    return figure


def plot(run: Any, trajectory: int | None, **options: Any) -> Any:
    """Learning curves of a run, or the picture of one of its trajectories."""
    from stablebptt.tasks.pictures import curves
    from stablebptt.tasks.pictures import rollouts as rollout_pictures

    if trajectory is None:
        return curves.learning_curves([run], **options)
    return rollout_pictures.draw(of_run(run), trajectory)


def of_run(run: Any) -> Any:
    """The rollouts that a run keeps."""
    from stablebptt.tasks.rollouts import Rollouts

    axes = {f"{what}_axes": getattr(run.problem, f"{what}_axes") for what in ("state", "control")}
    values = {name: run.trajectories[name] for name in ("time", "states", "controls", "loss")}  # a file has scales, too
    return Rollouts(run.problem, run.config, PHASES, **values, **axes)


def of_path(path: Any) -> Any:
    """A rollout of a problem."""
    from stablebptt.tasks.rollouts import Rollouts

    problem = path.problem
    if problem is None:
        raise ValueError("this path knows no problem, which names its axes; take one from problem.rollout(theta, x0)")
    values = {"time": path.time, "states": path.states[None], "controls": path.controls[None], "loss": path.loss[None]}
    axes = {"state_axes": problem.state_axes, "control_axes": problem.control_axes}
    return Rollouts(problem, {"task": problem.task, "options": problem.options}, ("rollout",), **values, **axes)


def _image(data: bytes, kind: str) -> str:
    return f'<img src="data:image/{kind};base64,{base64.b64encode(data).decode()}">'
