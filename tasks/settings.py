"""How a problem is trained. The defaults, the published ones, stand here and nowhere else.

The command line reads them before anything heavy is there: NumPy and what needs it are imported where settings are checked.
"""

from dataclasses import asdict, dataclass, field, fields
from typing import Any

from stablebptt.tasks.errors import ArgumentError

DIVERGENCE = ("stop", "skip")
CHECKPOINT_SECONDS = 30.0  # a run file is written at least this often
OPTIMIZER = "adam"
# Of the optimizer, where it is given in words (in plans, on the command line) and not as a rule.
RULE_OPTIONS = ("learning_rate", "momentum")


def _rule() -> Any:
    from stablebptt.tasks import optimizers

    return optimizers.RULES[OPTIMIZER]()


@dataclass(frozen=True)
class Settings:
    """How a problem is trained; the defaults are the published ones."""

    variant: Any = "C"
    epochs: int = 1000
    seed: int = 0
    clip: str = "none"
    clip_at: float = 1.0
    optimizer: Any = field(default_factory=_rule)
    batch_size: int = 8
    train_count: int = 256
    test_count: int = 256
    shuffle: bool = False
    on_divergence: str = "stop"

    def __post_init__(self) -> None:
        import numpy as np

        from stablebptt.tasks import checks, optimizers
        from stablebptt.tasks.problems import LARGEST_SEED

        clean: dict[str, Any] = {}  # NumPy's numbers become Python's: a file keeps these
        for name, least in (("epochs", 1), ("seed", 0), ("batch_size", 1), ("train_count", 1), ("test_count", 1)):
            most = LARGEST_SEED if name == "seed" else checks.MOST
            clean[name] = checks.whole(name, getattr(self, name), least, most)
        clean["clip"] = checks.choice("clip", self.clip, optimizers.CLIP_MODES)
        at = checks.real("clip_at", self.clip_at)
        optimizers.clip(np.zeros(1), self.clip, at)
        clean["clip_at"] = self.clip_at if type(self.clip_at) is int else at  # 1 and 1.0 make other names of files in a sweep
        clean["shuffle"] = checks.flag("shuffle", self.shuffle)
        clean["on_divergence"] = checks.choice("on_divergence", self.on_divergence, DIVERGENCE)
        if not isinstance(self.optimizer, optimizers.Rule):
            raise ArgumentError(f"optimizer is {self.optimizer!r}; give a rule such as optimizers.adam(0.001)")
        for name, value in clean.items():
            object.__setattr__(self, name, value)

    def describe(self) -> dict[str, Any]:
        """The settings as words and numbers, for a file."""
        from stablebptt.tasks import checks, optimizers

        variant = str(self.variant) if isinstance(self.variant, str) else checks.plain("variant", self.variant)
        return {**asdict(self), "variant": variant, "optimizer": checks.plain("optimizer", optimizers.describe(self.optimizer))}

    def given(self) -> dict[str, Any]:
        """The settings as keywords."""
        return {each.name: getattr(self, each.name) for each in fields(self)}


def settings_of(config: dict[str, Any]) -> Settings:
    """The settings that a configuration describes."""
    from stablebptt.tasks import optimizers

    given = {name: config[name] for name in Settings.__dataclass_fields__}
    variant = given["variant"]
    given["variant"] = variant if isinstance(variant, str) else tuple(variant)
    return Settings(**{**given, "optimizer": optimizers.from_description(given["optimizer"])})


def make_settings(**given: Any) -> Settings:
    """Settings, with a clear message if there is no such option."""
    unknown = set(given) - set(Settings.__dataclass_fields__)
    if unknown:
        allowed = ", ".join(Settings.__dataclass_fields__)
        raise ArgumentError(f"train has no option {', '.join(sorted(unknown))}; choose from {allowed}")
    return Settings(**given)


def settings_in_words(given: dict[str, Any]) -> Settings:
    """Settings of a plan or of the command line, where the optimizer is a name beside `RULE_OPTIONS`."""
    from stablebptt.tasks import optimizers

    rates = {name: given[name] for name in RULE_OPTIONS if given.get(name) is not None}
    rule = optimizers.from_description({"name": given.get("optimizer", OPTIMIZER), **rates})
    return make_settings(**{name: value for name, value in given.items() if name not in RULE_OPTIONS} | {"optimizer": rule})
