"""Schedules of the learning rate, chains of rules, and rules of the user's: as data, in files, plans and on the command line."""

import dataclasses
import json
import math

import numpy as np
import pytest

import stablebptt as sb
from stablebptt.tasks import optimizers, schedules, sweeps
from stablebptt.tasks.settings import Settings, make_settings, settings_in_words, settings_of

SMALL = {"train_count": 16, "test_count": 8, "batch_size": 8}
WORDS = "--steps 4 --hidden 4 --train-count 16 --test-count 8 --variant R".split()


def small(**options):
    return sb.problem("cartpole", steps=4, hidden=(4,), **options)


def train(epochs=3, **settings):
    return sb.train(small(), "R", epochs, **{**SMALL, **settings})


# --- schedules --------------------------------------------------------------------------------------------------------

NUMBERS = {
    "constant:0.5": [0.5] * 7,
    "linear:1:0:4": [1, 0.75, 0.5, 0.25, 0, 0, 0],
    "cosine:1:0:4": [1, (2 + math.sqrt(2)) / 4, 0.5, (2 - math.sqrt(2)) / 4, 0, 0, 0],
    "cosine:3:1:2": [3, 2, 1, 1, 1, 1, 1],
    "exponential:1:0.0625:4": [1, 0.5, 0.25, 0.125, 0.0625, 0.0625, 0.0625],
    "piecewise:3:1:2:4:0": [3, 2, 2, 2, 0, 0, 0],
    "warmup:4:2": [0.5, 1, 1.5, 2, 2, 2, 2],
    "warmup:2:linear:1:0:4": [0.5, 1, 1, 0.75, 0.5, 0.25, 0],
    "warmup:1:warmup:2:1": [0.5, 0.5, 1, 1, 1, 1, 1],
}


@pytest.mark.parametrize("text", NUMBERS)
def test_the_numbers_of_a_schedule(text):
    schedule = schedules.read("rate", text)
    np.testing.assert_allclose([schedule(k) for k in range(7)], NUMBERS[text], rtol=1e-15, atol=1e-16)
    assert schedules.read("rate", str(schedule)) == schedule == schedule.over(99) and hash(schedule)
    with pytest.raises(AttributeError):
        schedule.rate = 1


def test_a_schedule_without_a_length_takes_that_of_the_run():
    for text in ("cosine:0.1", "linear:0.1:0.01", "exponential:0.1:0.001"):
        schedule = schedules.read("rate", text)
        with pytest.raises(ValueError, match="has no length"):
            schedule(0)
        assert schedule.over(40).updates == 40 and schedule.over(40).over(50).updates == 40
    assert str(sb.schedules.warmup(10, sb.schedules.cosine(0.1)).over(50)) == "warmup:10:cosine:0.1:0.0:40"
    settings = make_settings(epochs=7, train_count=20, batch_size=8, optimizer=sb.optimizers.adam("cosine:0.1"))
    assert settings.updates == 21 and settings.optimizer.learning_rate == sb.schedules.cosine(0.1, 0, 21)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("fast", "is 'fast'; it must be a number, or a schedule such as cosine:0.001:1e-5"),
        ("-1", "is -1.0; it must be above 0"), ("nan", "is nan; it must be finite"), ("", "is ''; it must be a number"),
        ("cosine", "'cosine'; it must be of the form cosine:BEGIN"), ("cosine:a", "of the form cosine:BEGIN"),
        ("cosine:1:2:3:4", "of the form"), ("linear:1", "of the form linear:BEGIN:END"), ("cosine:1:0:2.5", "of the form cosine"),
        ("cosine:1:0:0", "updates is 0; it must be at least 1"), ("cosine:0:0", "one of them must be above 0"),
        ("exponential:1:0", "end is 0.0; it must be above 0"), ("linear:-1:1", "begin is -1.0; it must be at least 0"),
        ("piecewise:1:2", "1 rates and the updates \\[2\\]"), ("piecewise:1:5:1:4:1", "and the updates in order"),
        ("piecewise:x", "of the form piecewise"), ("warmup:3", "the rate after it is ''"), ("warmup:x:1", "of the form warmup"),
        ("warmup:0:1", "updates is 0"), (True, "is True; it must be a number"), ([1], "it must be a number"),
    ],
)  # fmt: skip
def test_rates_that_are_none(value, words):
    with pytest.raises((ValueError, TypeError), match=words):
        schedules.read("rate", value)


RULES = {
    "adam": optimizers.adam, "sgd": optimizers.sgd, "momentum": lambda rate: optimizers.sgd(rate, 0.9),
    "adagrad": optimizers.adagrad, "adadelta": optimizers.adadelta, "rmsprop": optimizers.rmsprop,
    "chain": lambda rate: optimizers.chain(optimizers.clipping("norm", 0.5), optimizers.adam(rate), optimizers.decay(0.1, rate)),
}  # fmt: skip


@pytest.mark.parametrize("name", RULES)
def test_every_rule_follows_a_schedule(name):
    """As if the rate were given anew before every update."""
    make, rates = RULES[name], [0.4, 0.4, 0.1, 0.1]
    rule = make(sb.schedules.piecewise((0.4, 0.1), at=(2,)))
    start, random = np.array([1.0, -2.0, 0.5], np.float32), np.random.default_rng(0)
    theta, state = start, rule.init(start)
    plain, plain_state = start, make(rates[0]).init(start)
    for rate in rates:
        gradient = random.normal(size=3).astype(np.float32)
        theta, state = rule.apply(theta, gradient, state)
        plain, plain_state = make(rate).apply(plain, gradient, plain_state)
        assert theta.dtype == np.float32 and np.array_equal(theta, plain)
    counts = [values.tolist() for key, values in state.items() if key.endswith("updates")]
    assert counts and all(count == [4] for count in counts)
    assert {key: state[key].tolist() for key in plain_state} == {key: values.tolist() for key, values in plain_state.items()}


@pytest.mark.parametrize("name", RULES)
def test_a_number_and_the_schedule_that_stays_give_the_same_bits(name):
    number = train(optimizer=RULES[name](0.05))
    assert np.array_equal(number.theta, train(optimizer=RULES[name]("constant:0.05")).theta)
    assert not np.array_equal(number.theta, train(optimizer=RULES[name]("cosine:0.05")).theta)


@pytest.mark.thinned(5)
@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("rate", ["warmup:3:cosine:0.05:0.001", "exponential:0.05:0.001"])
def test_resuming_with_a_schedule(tmp_path, name, rate):
    """Also in the middle of the warm-up."""
    settings = {"optimizer": RULES[name](rate), "clip": "norm"}

    def stop(progress):
        if progress.epoch == 1:
            raise KeyboardInterrupt

    whole = train(4, **settings)
    with pytest.raises(KeyboardInterrupt):
        train(4, out=tmp_path / "run.h5", report=stop, **settings)
    parts = train(4, out=tmp_path / "run.h5", resume=True, **settings)
    assert np.array_equal(whole.theta, parts.theta) and np.array_equal(whole.history["loss"], parts.history["loss"])
    assert settings_of(sb.load(tmp_path / "run.h5").config) == dataclasses.replace(
        make_settings(variant="R", epochs=4, **SMALL), **settings
    )


def test_a_schedule_belongs_to_the_run_that_was_planned(tmp_path):
    """More epochs later would change the rates of the updates that are done."""
    train(2, optimizer=sb.optimizers.adam("cosine:0.01"), out=tmp_path / "run.h5")
    with pytest.raises(ValueError, match=r"optimizer.learning_rate: 'cosine:0.01:0.0:4' in the file, 'cosine:0.01:0.0:6' given"):
        train(3, optimizer=sb.optimizers.adam("cosine:0.01"), out=tmp_path / "run.h5", resume=True)
    longer = train(3, optimizer=sb.optimizers.adam("cosine:0.01:0:4"), out=tmp_path / "run.h5", resume=True)
    assert len(longer.history["epoch"]) == 3


# --- chains -----------------------------------------------------------------------------------------------------------


def test_a_chain_is_what_it_says(random):
    """Adam with decoupled weight decay, written out; and a penalty, where the decay comes first."""
    theta, rate, weight = np.array([1.0, -2.0]), 0.1, 0.01
    rule = optimizers.chain(optimizers.clipping("value", 0.5), optimizers.adam(rate), optimizers.decay(weight, rate))
    adam, state, own = optimizers.adam(rate), rule.init(theta), optimizers.adam(rate).init(theta)
    expected = theta
    for _ in range(3):
        gradient = random.normal(size=2)
        theta, state = rule.apply(theta, gradient, state)
        moved, own = adam.apply(expected, np.clip(gradient, -0.5, 0.5), own)
        expected = moved - rate * weight * expected
        np.testing.assert_allclose(theta, expected, rtol=1e-14)
    penalty = optimizers.chain(optimizers.decay(0.3), optimizers.sgd(0.1))
    assert np.allclose(penalty.apply(theta, gradient, penalty.init(theta))[0], theta - 0.1 * (gradient + 0.3 * theta))


def test_a_chain_is_saved_as_a_table_and_made_again():
    inner = optimizers.chain(optimizers.clipping(), optimizers.sgd("linear:0.1:0.01", 0.5))
    settings = make_settings(epochs=2, **SMALL, optimizer=optimizers.chain(inner, optimizers.decay(0.5, "cosine:0.1")))
    config = json.loads(json.dumps(settings.describe()))
    assert settings_of(config) == settings
    assert config["optimizer"]["parts"][1] == {"name": "decay", "learning_rate": "cosine:0.1:0.0:4", "weight": 0.5}
    with pytest.raises(ValueError, match=r"give rules, such as clipping\('norm'\), adam"):
        optimizers.chain()
    with pytest.raises(ValueError, match="unknown optimizer 'x'"):
        settings_of(config | {"optimizer": {"name": "chain", "parts": [{"name": "x"}]}})
    with pytest.raises(ValueError, match="unknown clip mode"):
        optimizers.clipping("hard")


def test_clipping_in_a_chain_is_that_of_the_settings():
    chained = train(optimizer=optimizers.chain(optimizers.clipping("norm", 0.1), optimizers.adam()))
    assert np.array_equal(chained.theta, train(clip="norm", clip_at=0.1).theta)


def test_words_of_plans_and_options():
    made = settings_in_words({"optimizer": "sgd", "learning_rate": "warmup:4:0.1", "momentum": 0.5, "weight_decay": 0.01})
    rate = sb.schedules.warmup(4, 0.1)
    assert made.optimizer == optimizers.chain(optimizers.sgd(rate, 0.5), optimizers.decay(0.01, rate))
    assert settings_in_words({"weight_decay": 0}) == settings_in_words({}) == Settings()
    assert settings_in_words({"optimizer": {"name": "adam", "beta1": 0.8}}).optimizer == optimizers.adam(beta1=0.8)
    with pytest.raises(ValueError, match=r"weight is -1\.0"):
        settings_in_words({"weight_decay": -1})
    with pytest.raises(ValueError, match=r"weight_decay belongs to the optimizer; give optimizer=sb\.optimizers\.chain"):
        train(weight_decay=0.1)


def test_differences_in_a_chain_are_named(tmp_path):
    def chain(weight):
        return optimizers.chain(optimizers.adam(), optimizers.decay(weight, 0.001))

    train(1, optimizer=chain(0.1), out=tmp_path / "run.h5")
    with pytest.raises(ValueError, match=r"resumed: optimizer.parts.1.weight: 0.1 in the file, 0.2 given; give"):
        train(2, optimizer=chain(0.2), out=tmp_path / "run.h5", resume=True)


# --- plans, command line ----------------------------------------------------------------------------------------------

PLAN = """
task = "cartpole"
[options]
steps = 4
hidden = [4]
[train]
variant = "R"
epochs = 2
train_count = 16
test_count = 8
learning_rate = [0.01, "cosine:0.01:1e-4"]
weight_decay = [0, 0.1]
"""


@pytest.mark.slow
def test_a_plan_varies_schedules(tmp_path, run):
    (tmp_path / "plan.toml").write_text(PLAN)
    assert [o.status for o in sb.sweep(tmp_path / "plan.toml", tmp_path / "folder", jobs=1)] == ["complete"] * 4
    rates = [planned.config["optimizer"] for planned in sweeps.read_plan(tmp_path / "plan.toml")]
    assert rates[2] == {"name": "adam", "learning_rate": "cosine:0.01:0.0001:4", "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-7}
    result = run("report", tmp_path / "folder")
    page = (tmp_path / "folder" / "report" / "report.md").read_text()
    assert result.code == 0 and "cosine:0.01:0.0001:4" in page


def test_a_schedule_on_the_command_line(run):
    words = ["--lr", "cosine:0.01:1e-4", "--weight-decay", 0.1, "--epochs", 2, "--out", "run.h5"]
    result = run("cartpole", "train", *WORDS, *words)
    assert result.code == 0, result.err
    rule = sb.load("run.h5").config["optimizer"]
    assert [part["learning_rate"] for part in rule["parts"]] == ["cosine:0.01:0.0001:4"] * 2
    assert "cosine:0.01:0.0001:4" in run("inspect", "run.h5").out
    assert run("cartpole", "train", "--resume", "--out", "run.h5").code == 0
    assert run("cartpole", "train", *WORDS, *words, "--resume").code == 0  # the same command again
    result = run("cartpole", "train", "--resume", "--out", "run.h5", "--epochs", 3)  # its schedule has ended
    assert result.code == 0 and sb.load("run.h5").config["optimizer"] == rule, result.err
    result = run("cartpole", "train", "--resume", "--weight-decay", 0.2, "--epochs", 3, "--out", "run.h5")
    assert result.code == 2 and "optimizer.parts.1.weight: 0.1 in the file, 0.2 given" in result.err
    result = run("cartpole", "train", *WORDS, "--lr", "cosine", "--out", "other.h5")
    assert result.code == 2 and "learning_rate is 'cosine'; it must be of the form cosine:BEGIN" in result.err
    assert result.err.count("\n") == 1


# --- a rule of the user's ---------------------------------------------------------------------------------------------

OWN = """
from dataclasses import dataclass

import numpy as np

import stablebptt as sb


@dataclass(frozen=True)
class Signs(sb.optimizers.Rule):
    learning_rate: float = 0.01
    period: int = 3

    def apply(self, theta, gradient, state):
        return theta - self.learning_rate / self.period * np.sign(gradient), {}


CLIPPED = sb.optimizers.chain(sb.optimizers.clipping("norm"), Signs(0.02))
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "my_rules.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))


def test_a_rule_of_ones_own_on_the_command_line(own, run):
    words = [*WORDS, "--optimizer", "my_rules:Signs", "--lr", "linear:0.1:0.01", "--out", "run.h5"]
    result = run("cartpole", "train", *words, "--epochs", 2)
    assert result.code == 0, result.err
    table = {"name": "signs", "source": "my_rules:Signs", "learning_rate": "linear:0.1:0.01:4", "period": 3}
    assert sb.load("run.h5").config["optimizer"] == table
    assert run("cartpole", "train", *words, "--epochs", 2, "--resume").code == 0
    known = run("cartpole", "train", "--optimizer", "my_rules:Signs", "--resume", "--epochs", 4, "--out", "run.h5")
    assert known.code == 0 and sb.load("run.h5").config["optimizer"] == table, known.err
    for words, message in (
        ([], "the optimizer in run.h5 is one of your own; name it, too: --optimizer my_rules:Signs"),
        (["--optimizer", "adam"], "optimizer.name: 'signs' in the file, 'adam' given"),
    ):
        refused = run("cartpole", "train", "--resume", "--epochs", 5, "--out", "run.h5", *words)
        assert refused.code == 2 and message in refused.err and refused.err.count("\n") == 1


def test_a_file_does_not_say_what_is_imported(own, run, tmp_path):
    assert run("cartpole", "train", *WORDS, "--epochs", 1, "--optimizer", "my_rules.py:Signs", "--out", "run.h5").code == 0
    assert sb.load("run.h5").config["optimizer"]["source"] == "my_rules.py:Signs"
    import sys

    for words in (["train", "--resume", "--epochs", 2, "--out", "run.h5"], ["simulate", "run.h5", "--out", "paths.h5"]):
        sys.modules.pop("my_rules", None)
        run("cartpole", *words)
        assert "my_rules" not in sys.modules


def test_a_rule_of_ones_own_in_python_and_from_there_on(own, run, tmp_path):
    """The same rule, wherever its module was found; as a class or as a rule with its numbers."""
    import my_rules

    for rule, words in ((my_rules.Signs(), "my_rules.py:Signs"), (my_rules.CLIPPED, "my_rules:CLIPPED")):
        train(1, optimizer=rule, out=tmp_path / "run.h5", force=True)
        resumed = ["--resume", "--epochs", 2, "--optimizer", words, "--out", tmp_path / "run.h5"]
        result = run("cartpole", "train", *resumed)
        assert result.code == 0, result.err
        assert np.array_equal(sb.load(tmp_path / "run.h5").theta, train(2, optimizer=rule).theta)


@pytest.mark.slow
def test_a_rule_of_ones_own_in_a_plan(own, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plan = PLAN.replace("weight_decay = [0, 0.1]", 'optimizer = ["my_rules:Signs", "my_rules.py:Signs", "adam"]')
    (tmp_path / "plan.toml").write_text(plan)
    outcomes = sb.sweep("plan.toml", "folder", jobs=1)
    assert [(o.status, o.message) for o in outcomes] == [("complete", "")] * 6
    table = '[train.optimizer]\nsource = "my_rules:Signs"\nperiod = 7\n'
    (tmp_path / "table.toml").write_text(PLAN.replace("weight_decay = [0, 0.1]", table))
    assert [planned.config["optimizer"]["period"] for planned in sweeps.read_plan("table.toml")] == [7, 7]


@pytest.mark.parametrize(
    ("named", "words"),
    [
        ("my_rules:Other", "has no Other"), ("absent_module:X", "absent_module"), ("my_rules:np", "is module, not a rule"),
        ("my_rules:dataclass", "is function, not a rule"), ({"source": "my_rules:Signs", "speed": 1}, "has no option 'speed'"),
        ({"source": "my_rules:CLIPPED", "period": 1}, "has no option 'period'"), ({"source": "json:JSONDecoder"}, "not a rule"),
    ],
)  # fmt: skip
def test_rules_that_are_none(own, named, words):
    with pytest.raises((ValueError, TypeError), match=words):
        settings_in_words({"optimizer": named})


def test_a_rule_that_only_applies_is_the_last_of_a_chain(own):
    import my_rules

    with pytest.raises(ValueError, match="Signs has no `step`; it can only be the last part of a chain"):
        optimizers.chain(my_rules.Signs(), optimizers.decay())
