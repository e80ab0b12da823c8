"""How a problem is trained. The defaults, the published ones, stand here and nowhere else.

The command line reads them before anything heavy is there: NumPy and what needs it are imported where settings are checked.
"""

from dataclasses import asdict, dataclass, field, fields
from typing import Any

from stablebptt.tasks.errors import ArgumentError
from stablebptt.tasks.task import Option

CHECKPOINT_SECONDS = 30.0  # a run file is written at least this often
LARGEST_SEED = 2**63 - 1  # as files keep it
CLIP_MODES = ("none", "value", "norm")
VARIANTS = {
    "R": "regular: full backpropagation through time",
    "M": "modified: stopped at the network's input",
    "S": "one step: both paths are closed",
    "N": "network: only the path through the network",
    "C": "combined: M where its sign agrees with that of R, else 0",
}
OPTIMIZERS = ("adam", "sgd", "adagrad", "adadelta", "rmsprop")
OPTIMIZER = "adam"
# Of the optimizer, where it is given in words (in plans, on the command line) and not as a rule.
RULE_OPTIONS = ("learning_rate", "momentum")


def _rule() -> Any:
    from stablebptt.tasks import optimizers

    return optimizers.RULES[OPTIMIZER]()


def _setting(kind: str, default: Any, help: str, **bounds: Any) -> Any:
    """A field that is described as the options of tasks are."""
    return field(default=default, metadata={"kind": kind, "default": default, "help": help, **bounds})


@dataclass(frozen=True)
class Settings:
    """How a problem is trained; the defaults are the published ones."""

    variant: Any = _setting("word", "C", "Gradient: R, M, S, N or C.")  # noqa: RUF009  (it makes a field)
    epochs: int = _setting("whole", 1000, "Passes over the training states.", least=1)
    seed: int = _setting("whole", 0, "Decides data, weights and order.", most=LARGEST_SEED)
    clip: str = _setting("word", "none", "Clip the gradient: not at all, every component, or the whole.", choices=CLIP_MODES)
    clip_at: float = _setting("real", 1.0, "Bound of the clipping.", above=0)
    optimizer: Any = field(default_factory=_rule)
    batch_size: int = _setting("whole", 8, "States per update.", least=1)
    train_count: int = _setting("whole", 256, "Training states.", least=1)
    test_count: int = _setting("whole", 256, "Test states.", least=1)
    shuffle: bool = _setting("flag", False, "Order of the training states in each epoch.")
    on_divergence: str = _setting("word", "stop", "Skip: leave out updates that are not finite.", choices=("stop", "skip"))

    def __post_init__(self) -> None:
        from stablebptt.tasks import optimizers

        if not isinstance(self.optimizer, optimizers.Rule):
            raise ArgumentError(f"optimizer is {self.optimizer!r}; give a rule such as optimizers.adam(0.001)")
        for name, option in OPTIONS.items():
            value = getattr(self, name)
            read = value if name == "variant" else option.read(value)  # a variant has as many gates as the problem has steps
            if name != "clip_at" or type(value) is not int:  # 1 and 1.0 make other names of files in a sweep
                object.__setattr__(self, name, read)  # NumPy's numbers become Python's: a file keeps these

    def describe(self) -> dict[str, Any]:
        """The settings as words and numbers, for a file."""
        from stablebptt.tasks import arguments, optimizers

        variant = str(self.variant) if isinstance(self.variant, str) else arguments.plain("variant", self.variant)
        optimizer = arguments.plain("optimizer", optimizers.describe(self.optimizer))
        return {**asdict(self), "variant": variant, "optimizer": optimizer}

    def given(self) -> dict[str, Any]:
        """The settings as keywords."""
        return {each.name: getattr(self, each.name) for each in fields(self)}


# What a setting is, by name; the optimizer is a rule.
OPTIONS = {each.name: Option(each.name, **each.metadata) for each in fields(Settings) if each.metadata}


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
    """Settings of a plan or of the command line, where the optimizer is a name (or a file's table) beside `RULE_OPTIONS`."""
    from stablebptt.tasks import optimizers

    rates = {name: given[name] for name in RULE_OPTIONS if given.get(name) is not None}
    named = given.get("optimizer", OPTIMIZER)
    rule = optimizers.from_description({**(named if isinstance(named, dict) else {"name": named}), **rates})
    return make_settings(**{name: value for name, value in given.items() if name not in RULE_OPTIONS} | {"optimizer": rule})
