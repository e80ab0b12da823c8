"""Make every picture and film of the documentation anew: ``python docs/make_pictures.py [FOLDER]``.

Trains what is missing in FOLDER (default: the folder `runs` beside this file), about 20 minutes on one core; broken off runs are
resumed. Then all pictures in docs/images are drawn, those of the reproduction and of the joins from their results.
"""

import os
import runpy
import sys
from pathlib import Path

from stablebptt.cli import main
from stablebptt.tasks.pictures import curves

DOCS = Path(__file__).resolve().parent
IMAGES = DOCS / "images"
SEEDS = range(3)
OWN = "double_pendulum:make_problem"
SYSTEMS = ("acrobot", "ball", "quadrotor", "burgers", "pendulum_chain")  # of docs/systems.md
LARGEST = 300_000  # bytes of a picture
FILMS = {"double-pendulum": ("dp-R", 1, 1), "cartpole": ("cp-C", 0, 1), "guidance": ("g-C-1", 0, 1), "quantum": ("q3-C", 0, 2)}


def command(*words: object) -> None:
    """One command line, shown and run."""
    print("stablebptt", *words, flush=True)
    try:
        main([str(word) for word in words])
    except SystemExit as leave:
        if leave.code:
            raise


def trainings() -> dict[str, list[object]]:
    """Name of each run and its options."""
    runs: dict[str, list[object]] = {}
    for variant in "RMCS":
        runs[f"cp-{variant}"] = ["cartpole", "--poles", 2, "--variant", variant, "--epochs", 200]
        for seed in SEEDS:
            options = ["--regularization", 0.001, "--variant", variant, "--epochs", 300, "--seed", seed]
            runs[f"g-{variant}-{seed}"] = ["guidance", *options]
    runs["cp4-C"] = ["cartpole", "--poles", 4, "--variant", "C", "--epochs", 60]
    runs["q3-C"] = ["quantum", "--target", 3, "--variant", "C", "--epochs", 200]
    return runs


def train(folder: Path) -> None:
    os.chdir(DOCS / "examples")
    for variant in "RMC":
        options = ["--variant", variant, "--epochs", 200, "--clip", "norm", "--quiet", "--resume"]
        command("custom", "train", OWN, *options, "--out", folder / f"dp-{variant}.h5")
    for name, (task, *options) in trainings().items():
        command(task, "train", *options, "--clip", "norm", "--quiet", "--resume", "--out", folder / f"{name}.h5")
    sys.path.insert(0, str(DOCS))
    import compare_systems

    for name in SYSTEMS:
        compare_systems.train(name, folder)


def draw(folder: Path) -> None:
    def runs(pattern: str) -> list[Path]:
        return [folder / f"{name}.h5" for name in trainings() if name.startswith(pattern)]

    for picture in ("fields", "rotation"):
        command("landscape", picture, "--force", "--out", IMAGES / f"{picture}.png")
    reproduction()
    regulator(IMAGES / "lqr.png")
    arena(IMAGES / "arena.png")
    joins(IMAGES / "joins.png")
    own = [folder / f"dp-{variant}.h5" for variant in "RMC"]
    command("plot", *own, "--smooth", 5, "--force", "--out", IMAGES / "double-pendulum.png")
    for name in SYSTEMS:
        draw_system(name, folder)
    for task, run in (("cartpole", "cp4-C"), ("guidance", "g-C-0")):
        command(task, "diagnose", folder / f"{run}.h5", "--count", 64, "--force", "--out", IMAGES / f"diagnosis-{task}.png")
    curves = {"cartpole": "cp-", "guidance": "g-"}
    for name, pattern in curves.items():
        command("plot", *runs(pattern), "--smooth", 5, "--force", "--out", IMAGES / f"{name}.png")
    for name, (run, sample, every) in FILMS.items():
        file = folder / f"{run}.h5"
        command("plot", file, "--trajectory", sample, "--force", "--out", IMAGES / f"{name}-trajectory.png")
        film = IMAGES / f"{name}.gif"
        command("animate", file, "--trajectory", sample, "--every", every, "--force", "--out", film)


def draw_system(name: str, folder: Path) -> None:
    """Learning curves of all runs of a system of docs/systems.md, and a rollout of the first one with R, which wins."""
    picture = name.replace("_", "-")
    files = [folder / f"{name}-{variant}" / f"seed_{seed}.h5" for variant in "RMC" for seed in range(5)]
    command("plot", *files, "--smooth", 5, "--force", "--out", IMAGES / f"{picture}.png")
    shown = folder / f"{name}-R" / "seed_0.h5"
    command("plot", shown, "--trajectory", 0, "--force", "--out", IMAGES / f"{picture}-trajectory.png")
    film(name, folder)


def film(name: str, folder: Path) -> None:
    """The film of a system of docs/systems.md."""
    import system_films

    system_films.save(name, folder)


def arena(picture: Path) -> None:
    """The memory of a gradient."""
    import draw_arenas

    curves.save(draw_arenas.figure, picture)


def joins(picture: Path) -> None:
    """Every rule of the page on joins beside R, from the results of docs/comparison."""
    sys.path.insert(0, str(DOCS / "comparison"))
    import make_tables

    curves.save(lambda: make_tables.figure(make_tables.read()), picture)


def reproduction() -> None:
    """The figures of the reproduction, and the tables of its page."""
    runpy.run_path(str(DOCS / "reproduction" / "make_page.py"), run_name="__main__")


def shrink() -> None:
    """Write pictures of systems that have many curves in few colours."""
    from PIL import Image

    for picture in [path for name in SYSTEMS for path in IMAGES.glob(f"{name.replace('_', '-')}*.png")]:
        if picture.stat().st_size > LARGEST:
            Image.open(picture).convert("RGB").quantize(64).save(picture, optimize=True)


def regulator(picture: Path) -> None:
    """How far the variants stay above the known optimum of the linear-quadratic regulator."""
    sys.path.insert(0, str(DOCS / "examples"))
    import lqr

    figure = curves.new_figure(5.6, 3.6)
    axes = figure.subplots()
    for variant in "RMCSN":
        gap = lqr.above_optimum(variant, 1500)
        axes.plot(gap.clip(1e-14), color=curves.COLOURS[variant], label=variant, linewidth=1.4)
    axes.set(yscale="log", xlabel="update", ylabel="loss above the optimum, relative", ylim=(1e-14, 1e3))
    axes.grid(True, alpha=0.3)
    figure.legend(frameon=False, loc="outside right center")
    curves.save(lambda: figure, picture)


if __name__ == "__main__":
    place = Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else DOCS / "runs"
    place.mkdir(parents=True, exist_ok=True)
    IMAGES.mkdir(exist_ok=True)
    train(place)
    draw(place)
    shrink()
