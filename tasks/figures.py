"""Import path of version 0.1 for `stablebptt.tasks.pictures.curves`."""

from stablebptt.tasks.pictures.curves import families, learning_curves, save  # noqa: F401
