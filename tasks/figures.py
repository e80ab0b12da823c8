"""Where version 0.1 kept what is now in `stablebptt.tasks.pictures.curves`."""

from stablebptt.tasks.pictures.curves import families, learning_curves, save  # noqa: F401
