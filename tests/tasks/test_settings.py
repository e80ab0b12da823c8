"""Options by their own names on the command line, in the environment and in config files; what --set reads."""

import json
import os
from pathlib import Path

import click
import pytest
from commands import call as call_command

from stablebptt import cli
from stablebptt.console.parameters import Numbers, Setting


def commands(group=cli.stablebptt, words=()):
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, (*words, name))
        else:
            yield (*words, name), command


OPTIONS = [
    (words, command, option)
    for words, command in commands()
    for option in command.params
    if isinstance(option, click.Option) and option.name != "config"
]
POSITIONAL = {"sweep": ["plan.toml"], "report": ["folder"], "info": [], "landscape": []}


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    """Run a command in this process, in a folder of its own: exit code, output, errors."""
    monkeypatch.chdir(tmp_path)

    def call(*words):
        code, captured = call_command(*words), capsys.readouterr()
        return code, captured.out, captured.err

    return call


def refused(result, code, *words):
    assert result[0] == code, result
    assert result[2].count("\n") == 1 and "Traceback" not in result[2] and len(result[2]) < 700, result
    for word in words:
        assert word in result[2], result


def parsed(words, command, option, without=()):
    """The context of a command that got nothing but what it cannot do without."""
    root = click.Context(cli.stablebptt, info_name="stablebptt")
    parent, group = root, cli.stablebptt
    for word in words[:-1]:
        group = group.commands[word]
        parent = click.Context(group, info_name=word, parent=parent)
    typed = []
    for parameter in command.params:
        if isinstance(parameter, click.Argument):
            typed.append("x.py:y")
        elif parameter.required and parameter is not option:
            typed += [parameter.opts[0], "file"]
    return command.make_context(words[-1], typed, parent=parent)


def sample(option):
    """A value that is no default: as text, in TOML, and as the command gets it."""
    kind = option.type
    if isinstance(kind, Setting):
        return "a=1 b=(1, 2) c=some words", '["a=1", "b=(1, 2)", "c=some words"]', {"a": 1, "b": [1, 2], "c": "some words"}
    if isinstance(kind, click.Choice) and option.multiple:
        first, last = kind.choices[0], kind.choices[-1]
        return f"{last} {first}", json.dumps([last, first]), (last, first)
    if isinstance(kind, click.Choice):
        return kind.choices[-1], json.dumps(kind.choices[-1]), kind.choices[-1]
    if isinstance(kind, Numbers):
        return "3,4", "[3, 4]", (3, 4)
    if isinstance(kind, click.Path):
        return "~/some.file", '"~/some.file"', Path.home() / "some.file"
    if option.multiple:
        return "one two", '["one", "two"]', ("one", "two")
    samples = {"integer": ("7", "7", 7), "float": ("0.25", "0.25", 0.25), "text": ("word", '"word"', "word")}
    samples["boolean"] = ("1", "true", True)
    return samples[kind.name]


def value_of(ctx, option):
    return ctx.obj["debug"] if option.name == "debug" else ctx.params[option.name]


@pytest.mark.parametrize("source", ["environment", "file"])
def test_every_option_is_set_by_its_own_names(monkeypatch, tmp_path, source):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert len(OPTIONS) > 150
    for words, command, option in OPTIONS:
        text, toml, expected = sample(option)
        named = [(name, expected) for name in option.opts if name.startswith("--")]
        named += [(name, not expected) for name in option.secondary_opts]
        for name, wanted in named:
            own = name.removeprefix("--")
            variable = "_".join(["STABLEBPTT", *words, own]).upper().replace("-", "_")
            with monkeypatch.context() as patch:
                if source == "environment":
                    patch.setenv(variable, text)
                else:
                    (tmp_path / "config.toml").write_text(f"[{'.'.join(words)}]\n{own} = {toml}\n")
                    patch.setenv("_".join(["STABLEBPTT", *words, "CONFIG"]).upper(), str(tmp_path / "config.toml"))
                found = value_of(parsed(words, command, option), option)
            assert found == wanted, (words, own, found)


def test_a_flag_can_be_switched_off_where_a_file_switches_it_on(monkeypatch, tmp_path):
    words, command, option = next(entry for entry in OPTIONS if entry[2].name == "shuffle")
    file = tmp_path / "config.toml"
    monkeypatch.setenv("STABLEBPTT_CARTPOLE_TRAIN_CONFIG", str(file))
    for content, variable, text, expected in (
        ("shuffle = true", "SHUFFLE", "0", False),
        ("shuffle = true", "FIXED_ORDER", "1", False),
        ("fixed-order = true", "SHUFFLE", "yes", True),
        ("fixed-order = false", "SHUFFLE", "", True),
    ):
        file.write_text(f"[cartpole.train]\n{content}\n")
        with monkeypatch.context() as patch:
            patch.setenv(f"STABLEBPTT_CARTPOLE_TRAIN_{variable}", text)
            assert parsed(words, command, option).params["shuffle"] is expected, (content, variable, text)
    file.write_text("[cartpole.train]\nshuffle = true\nfixed-order = true\n")
    with pytest.raises(click.UsageError, match="given twice"):
        parsed(words, command, option)


def test_the_command_line_wins_over_the_environment_and_that_over_the_file(run, monkeypatch, tmp_path):
    (tmp_path / "c.toml").write_text("[info]\njson = true\n")
    as_json, in_words = run("info", "--config", "c.toml"), run("info")
    assert json.loads(as_json[1])["stablebptt"] and in_words[1].startswith("stablebptt: ")
    monkeypatch.setenv("STABLEBPTT_INFO_JSON", "false")
    assert run("info", "--config", "c.toml")[1].startswith("stablebptt: ")
    assert json.loads(run("info", "--config", "c.toml", "--json")[1])["stablebptt"]


def test_debug_and_config_from_elsewhere(run, monkeypatch, tmp_path):
    (tmp_path / "c.toml").write_text("[inspect]\ndebug = true\n")
    assert "Traceback" not in run("inspect", "absent.h5")[2]
    assert "Traceback" in run("inspect", "absent.h5", "--config", "c.toml")[2]
    monkeypatch.setenv("STABLEBPTT_INSPECT_DEBUG", "0")
    assert "Traceback" not in run("inspect", "absent.h5", "--config", "c.toml")[2]
    monkeypatch.setenv("STABLEBPTT_INSPECT_DEBUG", "1")
    assert "Traceback" in run("inspect", "absent.h5")[2]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[cartpol.train]\nepochs = 2\n", ["[cartpol]", "cartpole, guidance"]),
        ("[cartpole.trian]\nepochs = 2\n", ["[cartpole.trian]", "train, simulate, evaluate, diagnose, check"]),
        ("epochs = 2\n", ["'epochs'", "no command"]),
        ("[cartpole]\nepochs = 2\n", ["'cartpole.epochs'"]),
        ("cartpole = 2\n", ["[cartpole] must be a table"]),
        ("[guidance.train]\npole = 2\n", ["guidance train has no option 'pole'", "drivers"]),
        ("[custom.train]\nfixed = true\n", ["custom train has no option 'fixed'"]),
        ("[info]\nas_json = true\n", ["info has no option 'as_json'", "json"]),
        ("[info]\nconfig = 'other.toml'\n", ["info has no option 'config'"]),
        ("[info.more]\njson = true\n", ["info has no option 'more'"]),
        ("[info]\njson = 'perhaps'\n", ["'perhaps' is not a valid boolean"]),
        ("[info]\njson = [true]\n", ["info", "it must be one value"]),
        ("[info]\njson = {a = 1}\n", ["it must be one value"]),
        ("[plot]\nout-file = 'x'\nfiles = 3\n", ["plot has no option 'out-file'"]),
    ],
)
def test_what_matches_nothing_in_a_config_file_is_refused(run, tmp_path, content, words):
    (tmp_path / "c.toml").write_text(content)
    refused(run("info", "--config", "c.toml"), 2, "c.toml" if "boolean" not in words[0] else "--json", *words)


def test_tables_of_other_commands_are_fine(run, tmp_path):
    others = "[cartpole.train]\nepochs = 2\nbatch-size = 3\n[custom.train.set]\nplace = 0.5\n[sweep]\njobs = 2\n"
    (tmp_path / "c.toml").write_text(f"\ufeff{others}[info]\njson = true\n", encoding="utf-8")  # with a byte order mark
    code, out, err = run("info", "--config", "c.toml")
    assert code == 0 and err == "" and json.loads(out)


def test_a_tilde_is_the_home_folder(run, monkeypatch, tmp_path):
    import stablebptt as sb
    from stablebptt.tasks import sweeps

    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    (home / "c.toml").write_text("[cartpole.train]\nsteps = 4\nhidden = 4\ntrain-count = 4\ntest-count = 4\nepochs = 1\n")
    monkeypatch.setenv("STABLEBPTT_CARTPOLE_TRAIN_CONFIG", "~/c.toml")
    monkeypatch.setenv("STABLEBPTT_CARTPOLE_TRAIN_OUT", "~/a.h5")
    assert run("cartpole", "train")[0] == 0 and (home / "a.h5").exists()
    assert run("cartpole", "train", "--out=~/b.h5")[0] == 0 and (home / "b.h5").exists()
    assert run("inspect", "~/a.h5")[0] == 0
    made, counts = sb.load("~/a.h5").problem, {"train_count": 4, "test_count": 4, "epochs": 1}
    sb.train(made, out="~/c.h5", **counts)
    sb.train_seeds(made, [3], out="~/seeds", **counts)
    plan = 'task = "cartpole"\n[options]\nsteps = 4\nhidden = [4]\n[train]\nepochs = 1\ntrain_count = 4\ntest_count = 4\n'
    (home / "plan.toml").write_text(f"\ufeff{plan}", encoding="utf-8")
    (planned,) = sweeps.read_plan("~/plan.toml")
    assert sweeps.run_one(planned, "~/sweep").status == "complete"
    assert [o.status for o in sb.sweep("~/plan.toml", "~/sweep", resume=True)] == ["complete"]
    assert {path.name for path in home.iterdir()} == {"a.h5", "b.h5", "c.h5", "c.toml", "plan.toml", "seeds", "sweep"}
    assert sorted(os.listdir(tmp_path)) == ["home"]
    refused(run("inspect", "~nobody-of-this-name/x.h5"), 2, "home folder")
    with pytest.raises(ValueError, match="home folder that is not known"):
        sb.load("~nobody-of-this-name/x.h5")


# --- arguments of a function of one's own --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (".5", 0.5), ("5.", 5.0), ("+.5e3", 500.0), ("-.5", -0.5), ("1_000", 1000), ("0.5", 0.5), ("3", 3), ("1e-3", 1e-3),
        ("None", None), ("True", True), ("False", False), ("true", True), ("false", False), (" 2 ", 2),
        ("'text'", "text"), ('"text"', "text"), ("'2'", "2"), ("''", ""), ("word", "word"), ("two words", "two words"),
        ("data/x.npy", "data/x.npy"), ("./x", "./x"), ("/x", "/x"), ("~/x", "~/x"), ("größe", "größe"), ("nano", "nano"),
        ("(1, 2)", [1, 2]), ("[1, 2]", [1, 2]), ("1,2", [1, 2]), ("((1, .5), [None])", [[1, 0.5], [None]]), ("()", []),
        ("{'a': (1,)}", {"a": [1]}),
    ],
)  # fmt: skip
def test_values_of_arguments(text, value):
    name, found = Setting().convert(f"place={text}", None, None)
    assert name == "place" and found == value and type(found) is type(value)


@pytest.mark.parametrize(
    "text",
    ["", "nan", "inf", "-inf", "1e999", "[1, nan]", "[1e999]", "1j", "b'x'", "{1, 2}", "{1: 2}", "...", "1..5", "0.5.1", "1/2",
     "2*3", "'open", "[1, 2", "2020-01-01", "12:30", "0123", "+", "-x", "[range]",
     pytest.param("(" * 5000, id="nested"), pytest.param("9" * 5000, id="long")],
)  # fmt: skip
def test_values_that_cannot_be_used_are_refused(run, text, recwarn):
    with pytest.raises(click.BadParameter) as caught:
        Setting().convert(f"place={text}", None, None)
    assert "\n" not in caught.value.message and not recwarn.list


def test_arguments_of_the_wrong_form(run):
    for word in ("oops", "=1", "2x=1", "a-b=1"):
        refused(run("custom", "train", "json:dumps", "--set", word, "--out", "x.h5"), 2, "name=value")
    refused(run("custom", "train", "json:dumps", "--set", "a=1", "--set", "a=1", "--out", "x.h5"), 2, "a is given twice")
    refused(run("custom", "train", "json:dumps", "--set", "a=1/2", "--out", "x.h5"), 2, "a=1/2", "'text in quotes'")


def test_a_table_holds_arguments_as_they_are(monkeypatch, tmp_path):
    words, command, option = next(e for e in OPTIONS if isinstance(e[2].type, Setting))
    (tmp_path / "c.toml").write_text(f"[{'.'.join(words)}.set]\na = '1'\nb = [0.5, true]\n")
    monkeypatch.setenv("_".join(["STABLEBPTT", *words, "CONFIG"]).upper(), str(tmp_path / "c.toml"))
    assert parsed(words, command, option).params["arguments"] == {"a": "1", "b": [0.5, True]}
    for value in ("nan", "2020-01-01"):
        (tmp_path / "c.toml").write_text(f"[{'.'.join(words)}.set]\na = {value}\n")
        with pytest.raises(click.BadParameter, match="a="):
            parsed(words, command, option)


@pytest.mark.parametrize("name, rule", [("learning_rate", "adam"), ("momentum", "sgd")])
def test_a_learning_rate_is_given_with_the_optimizer(name, rule):
    import stablebptt as sb

    with pytest.raises(ValueError, match=rf"{name} belongs to the optimizer; give optimizer=sb\.optimizers\.{rule}\({name}="):
        sb.train(sb.problem("cartpole"), **{name: 0.1})
