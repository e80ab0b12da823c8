"""How a problem is trained. Only this file holds the defaults, which are the published ones.

The command line reads them before any heavy import: NumPy, and whatever needs it, is imported where settings are checked.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple, Self

from stablebptt.tasks.errors import ArgumentError
from stablebptt.tasks.task import Option

CHECKPOINT_SECONDS = 30.0  # a run file is written at least this often
LARGEST_SEED = 2**63 - 1  # the largest integer in files
CLIP_MODES = ("none", "value", "norm")
VARIANTS = {
    "R": "regular: full backpropagation through time",
    "M": "modified: stopped at the network's input",
    "S": "one step: both paths are closed",
    "N": "network: only the path through the network",
    "C": "combined: M where its sign agrees with that of R, else 0",
}
# Other joins of R and M, and gates, as they are spelled; docs/joins.md.
JOINS = {
    "minmod": "the smaller of R and M where their signs agree, else 0",
    "leaky:leak=L": "M where its sign agrees with that of R, else L M",
    "mean": "(R + M) / 2",
    "normalized": "mean of R and M with norm 1 each",
    "config": "ConFIG; config:length=minimum, maximum or harmonic",
    "imtlg": "IMTL-G",
    "pcgrad": "PCGrad",
    "mgda": "MGDA: the shortest vector between R and M",
    "projected": "M without its component against R",
}
GATES = {
    "R:decay=A": "gate of the physics times A^dt, of R or another variant",
    "R:truncate=K": "both gates closed at every K-th time step",
    "R:random=K": "both closed at random, on average every K steps; else larger",
}
LAYERS = "/layer"  # behind the name of a join: every array of parameters on its own
OPTIMIZERS = ("adam", "sgd", "adagrad", "adadelta", "rmsprop")
OPTIMIZER = "adam"
# Options of an optimizer that is given by name (in plans, on the command line) and not as a rule.
RULE_OPTIONS = ("learning_rate", "momentum", "weight_decay")


def _rule() -> Any:
    from stablebptt.tasks import optimizers

    return optimizers.RULES[OPTIMIZER]()


def _setting(kind: str, default: Any, help: str, **bounds: Any) -> Any:
    """A field with the description of a task's option."""
    return field(default=default, metadata={"kind": kind, "default": default, "help": help, **bounds})


@dataclass(frozen=True)
class Settings:
    """How a problem is trained; the defaults are the published ones."""

    variant: Any = _setting("word", "C", "Gradient: R, M, S, N, C, or another join or gates.")  # noqa: RUF009  (a call that returns a field)
    epochs: int = _setting("whole", 1000, "Passes over the training states.", least=1)
    seed: int = _setting("whole", 0, "Decides data, weights and order.", most=LARGEST_SEED)
    clip: str = _setting("word", "none", "Clip the gradient: not at all, every component, or the whole.", choices=CLIP_MODES)
    clip_at: float = _setting("real", 1.0, "Bound of the clipping.", above=0)
    optimizer: Any = field(default_factory=_rule)
    batch_size: int = _setting("whole", 8, "States per update.", least=1)
    train_count: int = _setting("whole", 256, "Training states.", least=1)
    test_count: int = _setting("whole", 256, "Test states.", least=1)
    evaluate_every: int = _setting("whole", 1, "Epochs per evaluation; the last is always evaluated.", least=1)
    shuffle: bool = _setting("flag", False, "Order of the training states in each epoch.")
    on_divergence: str = _setting("word", "stop", "Skip: leave out updates that are not finite.", choices=("stop", "skip"))
    window: int | None = _setting("whole", None, "Time steps per update, with the state carried on.  [default: all]", least=1)
    terminal: float | None = _setting("real", None, "Weight of the cost at a window's end.  [default: as at the end]", least=0)

    def __post_init__(self) -> None:
        from stablebptt.tasks import optimizers

        if not isinstance(self.optimizer, optimizers.Part):
            raise ArgumentError(f"optimizer is {self.optimizer!r}; give a rule such as optimizers.adam(0.001)")
        for name, option in OPTIONS.items():
            value = getattr(self, name)
            free = name == "variant" or (value is None and option.default is None)
            read = value if free else option.read(value)  # only the problem knows how many gates a variant has
            if name != "clip_at" or type(value) is not int:  # in a sweep, 1 and 1.0 give different file names
                object.__setattr__(self, name, read)  # NumPy numbers become Python numbers, for files
        if self.window is None:
            object.__setattr__(self, "optimizer", self.optimizer.over(self.updates))

    @property
    def updates(self) -> int:
        """Updates of the whole run, if there are no windows."""
        return self.epochs * -(-self.train_count // self.batch_size)

    def within(self, steps: int) -> Self:
        """The settings for rollouts of so many time steps: schedules have lengths, which windows must not know before."""
        windows = 1 if self.window is None else -(-steps // self.window)
        optimizer = self.optimizer.over(self.updates * windows)
        return self if optimizer == self.optimizer else replace(self, optimizer=optimizer)

    def describe(self) -> dict[str, Any]:
        """The settings as words and numbers, for a file."""
        from stablebptt.tasks import arguments, optimizers, variants

        optimizer = arguments.plain("optimizer", optimizers.describe(self.optimizer))
        given = {each.name: getattr(self, each.name) for each in fields(self)}
        chosen = {name: value for name, value in given.items() if value is not None}  # files say what is chosen
        return {**chosen, "variant": variants.describe(self.variant), "optimizer": optimizer}


# Settings by name, without the optimizer, which is a rule.
OPTIONS = {each.name: Option(each.name, **each.metadata) for each in fields(Settings) if each.metadata}
ABSENT = ("window", "terminal")  # settings that a file does not mention unless they are chosen


def settings_of(config: dict[str, Any]) -> Settings:
    """The settings in a configuration; it must be the user's own, since it says where a rule of the user's lies."""
    from stablebptt.tasks import optimizers

    needed = [name for name in Settings.__dataclass_fields__ if name not in ABSENT]
    given = {name: config[name] for name in needed} | {name: config.get(name) for name in ABSENT}
    variant = given["variant"]
    given["variant"] = variant if isinstance(variant, str) else tuple(variant)
    return Settings(**{**given, "optimizer": optimizers.from_description(given["optimizer"])})


def make_settings(**given: Any) -> Settings:
    """Settings from keywords; an ArgumentError names an unknown one."""
    from stablebptt.tasks import arguments

    rule = next((name for name in given if name in RULE_OPTIONS), None)
    if rule is not None:
        example = f"optimizer=sb.optimizers.{'sgd' if rule == 'momentum' else OPTIMIZER}({rule}=...)"
        if rule == "weight_decay":
            example = "optimizer=sb.optimizers.chain(sb.optimizers.adam(rate), sb.optimizers.decay(weight, rate))"
        raise ArgumentError(f"{rule} belongs to the optimizer; give {example}")
    arguments.known("train", given, Settings.__dataclass_fields__)
    return Settings(**given)


def settings_in_words(given: dict[str, Any]) -> Settings:
    """Settings from a plan or the command line, which give the optimizer by name (or a table) with `RULE_OPTIONS`."""
    rule = rule_in_words(given.get("optimizer", OPTIMIZER), {name: given.get(name) for name in RULE_OPTIONS})
    return make_settings(**{name: value for name, value in given.items() if name not in RULE_OPTIONS} | {"optimizer": rule})


def rule_in_words(named: Any, options: dict[str, Any]) -> Any:
    """The rule of a name (one of ours, or ``module:name`` of the user's) or of a file's table; `RULE_OPTIONS` may be None."""
    from stablebptt.tasks import optimizers

    given = {name: value for name, value in options.items() if value is not None}
    decay = given.pop("weight_decay", 0)
    if isinstance(named, str):
        named = {"source" if ":" in named else "name": named}
    elif not isinstance(named, dict):
        named = {"name": named}
    rule = optimizers.from_description({**named, **given})
    return rule if decay == 0 else optimizers.chain(rule, optimizers.decay(decay, getattr(rule, "learning_rate", 1.0)))


def words_of_rule(table: dict[str, Any]) -> tuple[dict[str, Any], float | None]:
    """The table and the weight decay from which `rule_in_words` makes the rule with this table."""
    parts = table.get("parts") if table["name"] == "chain" else None
    if not isinstance(parts, list) or len(parts) != 2 or parts[1].get("name") != "decay":
        return table, None
    rule, decay = parts
    return (rule, decay["weight"]) if decay["learning_rate"] == rule.get("learning_rate", 1.0) else (table, None)


class Spelled(NamedTuple):
    """Parts of the spelling of a variant: a name, whether it is joined per layer, words with values, and `is_own`.

    is_own : the name is "module:name", a join of the user's
    """

    name: str
    layered: bool
    words: list[tuple[str, str]]
    is_own: bool


def spelled(variant: str) -> Spelled:
    """The parts of a spelling such as ``config/layer:length=minimum:decay=0.4``."""
    tokens = variant.split(":")
    count = len(tokens)
    while count > 1 and "=" in tokens[count - 1]:
        count -= 1
    name, words = ":".join(tokens[:count]), [token.partition("=") for token in tokens[count:]]
    return Spelled(name.removesuffix(LAYERS), name.endswith(LAYERS), [(word, value) for word, _, value in words], count > 1)


def join_source(variant: Any) -> str | None:
    """Where the user's join of a variant lies, "module:name"; None if it has none."""
    parts = spelled(variant) if isinstance(variant, str) else None
    return parts.name if parts and parts.is_own else None


def without_place(variant: Any) -> Any:
    """A variant without the module of a user's join: where it lies does not count when two are compared."""
    source = join_source(variant)
    return variant if source is None else variant.replace(source, source.rpartition(":")[2], 1)


def sources(description: Any) -> Iterator[str]:
    """The sources of all rules of the user's in a description of an optimizer."""
    if isinstance(description, Mapping):
        if description.get("source") is not None:
            yield str(description["source"])
        for part in description.get("parts") or ():
            yield from sources(part)


def without_sources(description: Any) -> Any:
    """A description without the places of the user's rules: where a rule lies does not count when two are compared."""
    if not isinstance(description, Mapping):
        return description
    plain = {name: value for name, value in description.items() if name != "source"}
    parts = plain.get("parts")
    return {**plain, "parts": [without_sources(part) for part in parts]} if isinstance(parts, list) else plain
