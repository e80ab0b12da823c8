"""Joins of R and M against independent forms in NumPy: their papers' definitions, not our closed ones."""

import itertools
import math
import os
import subprocess
import sys

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

import stablebptt as sb
from stablebptt.tasks import joins, settings, variants
from stablebptt.tasks.training import settings_of

NAMES = [
    "C", "minmod", "leaky:leak=0.3", "mean", "normalized", "config", "config:length=minimum", "config:length=maximum",
    "config:length=harmonic", "imtlg", "pcgrad", "mgda", "projected",
]  # fmt: skip
COMPONENTWISE = NAMES[:3]
DEFAULTS = {"steps": 4, "hidden": (4,), "output_init": "glorot"}
COUNTS = {"train_count": 16, "test_count": 4}


def unit(v):
    norm = np.linalg.norm(v)
    return v / norm if norm else v


def config(r, m, length):
    """ConFIG: the direction whose cosines with all gradients are equal, by the pseudo-inverse."""
    direction = unit(np.linalg.pinv(np.stack([unit(r), unit(m)])) @ np.ones(2))
    if length is None:
        return (r @ direction + m @ direction) * direction
    tracked = length(np.linalg.norm(r), np.linalg.norm(m))
    return tracked * (unit(r) @ direction + unit(m) @ direction) * direction


def imtlg(r, m):
    """IMTL-G: weights with sum 1 that give equal projections on the unit vectors."""
    wr, wm = np.linalg.solve(np.array([[1, 1], [r @ (unit(r) - unit(m)), m @ (unit(r) - unit(m))]]), [1, 0])
    return wr * r + wm * m


def pcgrad(r, m):
    """PCGrad, algorithm 1."""
    own = [r.copy(), m.copy()]
    for one, other in ((0, m), (1, r)):
        if own[one] @ other < 0:
            own[one] = own[one] - (own[one] @ other) / (other @ other) * other
    return own[0] + own[1]


def mgda(r, m):
    """MGDA: the shortest convex combination, by search."""

    def between(g):
        return g * r + (1 - g) * m

    best = minimize_scalar(lambda g: between(g) @ between(g), bounds=(0, 1), method="bounded", options={"xatol": 1e-12}).x
    return min((between(g) for g in (0, 1, best)), key=np.linalg.norm)


def projected(r, m):
    """The vector next to m that has no component against r."""
    if r @ m >= 0:
        return m
    return m - r[:, None] @ np.linalg.lstsq(r[:, None], m, rcond=None)[0]


FORMS = {
    "C": lambda r, m: np.where(np.sign(r) == np.sign(m), m, 0),
    "minmod": lambda r, m: np.where(np.sign(r) == np.sign(m), np.sign(m) * np.minimum(abs(r), abs(m)), 0),
    "leaky:leak=0.3": lambda r, m: m * np.where(np.sign(r) == np.sign(m), 1, 0.3),
    "mean": lambda r, m: np.mean([r, m], axis=0),
    "normalized": lambda r, m: np.mean([unit(r), unit(m)], axis=0),
    "config": lambda r, m: config(r, m, None),
    "config:length=minimum": lambda r, m: config(r, m, min),
    "config:length=maximum": lambda r, m: config(r, m, max),
    "config:length=harmonic": lambda r, m: config(r, m, lambda a, b: 2 / (1 / a + 1 / b)),
    "imtlg": imtlg, "pcgrad": pcgrad, "mgda": mgda, "projected": projected,
}  # fmt: skip


def joined(name, r, m, layers=None):
    out = np.full_like(r, 7)
    found = joins.join(variants.read(name), r, m, np.array([0, len(r)] if layers is None else layers), out)
    return out, found


def vectors(random, dtype=np.float64, n=50):
    """Pairs that agree, that conflict, and of which one is much longer; some components are zero."""
    for mixing in (0.9, 0.2, -0.2, -0.9):
        for length in (1.0, 30.0, 0.03):
            r, m = random.standard_normal((2, n))
            m = length * (mixing * r + math.sqrt(1 - mixing**2) * m)
            r[:3], m[2:5] = 0, 0
            yield r.astype(dtype), m.astype(dtype)


def test_there_are_forms_of_all_joins():
    assert {variants.read(name).name for name in NAMES} == set(joins.KINDS) and set(FORMS) == set(NAMES)
    assert {name.partition(":")[0] for name in settings.JOINS} == set(joins.KINDS) - {"C"}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_joins_are_those_of_the_papers(name, dtype, random):
    tolerance = 1e-6 if name == "mgda" or dtype is np.float32 else 1e-12
    for r, m in vectors(random, dtype):
        value, found = joined(name, r, m)
        r, m = r.astype(np.float64), m.astype(np.float64)
        expected = FORMS[name](r, m)
        assert value.dtype == dtype
        np.testing.assert_allclose(value, expected, rtol=tolerance, atol=tolerance * max(abs(r).max(), abs(m).max()))
        assert found.norm2 == pytest.approx(expected @ expected, rel=1e-5 if dtype is np.float32 else 1e-6)
        assert found.cosine == pytest.approx(unit(r) @ unit(m), abs=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_c_is_one_of_them_to_the_bit(dtype, random):
    for r, m in vectors(random, dtype):
        expected = np.where(np.sign(r) == np.sign(m), m, dtype(0))
        found = joined("C", r, m)[0]
        # + 0: compiled code has the flag nsz, so the sign of a zero hangs on the processor
        assert (found + dtype(0)).tobytes() == (expected + dtype(0)).tobytes()
        assert np.array_equal(joined("leaky:leak=0", r, m)[0], expected)
        assert np.array_equal(joined("leaky:leak=1", r, m)[0], m)


ZERO_AT_ZERO = {"C", "minmod", "config:length=minimum", "config:length=harmonic", "imtlg", "mgda"}


@pytest.mark.parametrize("name", NAMES)
def test_where_one_of_them_is_zero(name, random):
    """The join is 0, or it is not, as the documentation says; it is always finite, and 0 if both are."""
    r, m = random.standard_normal((2, 20))
    zero = np.zeros(20)
    left = [joined(name, r, zero)[0], joined(name, zero, m)[0]]
    assert not joined(name, zero, zero)[0].any() and np.isfinite(left).all()
    assert (not np.any(left)) == (name in ZERO_AT_ZERO)
    if name in ("C", "minmod"):  # and of every component on its own
        r[::2], m[1::3] = 0, 0
        assert not joined(name, r, m)[0][(r == 0) | (m == 0)].any()


@pytest.mark.parametrize("name", NAMES)
def test_which_joins_lead_uphill(name, random):
    """Where the inner product with R is negative, a small step raises the loss."""
    slopes = [joined(name, r, m)[0] @ r / (r @ r) for r, m in vectors(random)]
    assert (min(slopes) < -1e-3) == (name in ("mean", "leaky:leak=0.3"))
    assert name in ("mean", "leaky:leak=0.3") or min(slopes) > -1e-12


# The longest that a join gets: how often the shorter one of R and M, or M.
LONGEST = {"mgda": 1, "imtlg": 2, "config:length=minimum": 2, "config:length=harmonic": 4}
LONGEST_OF_M = ("C", "minmod", "leaky:leak=0.3", "projected")


@pytest.mark.parametrize("name", [*LONGEST, *LONGEST_OF_M])
def test_how_long_a_join_gets(name, random):
    for r, m in [*vectors(random), (random.standard_normal(9),) * 2]:
        for one, other in ((r, m), (r, 1e4 * r), (1e4 * r, r)):
            norms = [np.linalg.norm(one), np.linalg.norm(other)]
            limit = norms[1] if name in LONGEST_OF_M else LONGEST[name] * min(norms)
            assert np.linalg.norm(joined(name, one, other)[0]) <= limit * (1 + 1e-12)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nothing_hides_what_is_not_finite(name, bad, random):
    for dtype in (np.float32, np.float64):
        for place in (0, 1):
            pair = random.standard_normal((2, 9)).astype(dtype)
            pair[place, 4] = bad
            for other in (0, 1, -1):
                pair[1 - place, 4] = other
                value, found = joined(name, *pair)
                assert not np.isfinite(value[4]) and not math.isfinite(found.norm2)


def large(dtype):
    return [1e30, 1e-30] if dtype is np.float32 else [1e200, 1e-200, 1e300, 1e-300]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_squares_of_large_gradients_do_not_overflow(name, dtype, random):
    r, m = random.standard_normal((2, 40)).astype(dtype)
    expected, found = joined(name, r, m)
    for factor in large(dtype):
        with np.errstate(all="raise"):
            scaled = dtype(factor)
            value, there = joined(name, r * scaled, m * scaled)
        again = value if name == "normalized" else value / scaled
        np.testing.assert_allclose(again, expected, rtol=1e-5 if dtype is np.float32 else 1e-12)
        assert there.cosine == pytest.approx(found.cosine, rel=1e-6)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in COMPONENTWISE])
def test_per_layer_every_array_is_joined_on_its_own(name, random):
    r, m = random.standard_normal((2, 30))
    layers, per_layer = [0, 4, 5, 30], name.replace(name.partition(":")[0], name.partition(":")[0] + "/layer", 1)
    value, found = joined(per_layer, r, m, layers)
    for first, end in itertools.pairwise(layers):
        np.testing.assert_array_equal(value[first:end], joined(name, r[first:end].copy(), m[first:end].copy())[0])
    assert found.cosine == pytest.approx(unit(r) @ unit(m)) and found.norm2 == pytest.approx(value @ value)
    assert str(joins.per_layer(name)) == per_layer == str(variants.read(per_layer))
    assert joins.per_layer(variants.read(name)) == variants.read(per_layer)


def test_spellings():
    for name in NAMES:
        assert str(variants.read(name)) == name and variants.read(name) == variants.read(variants.read(name))
        assert variants.describe(name) == variants.describe(variants.read(name)) == name
    assert variants.read("leaky:leak=0.1") == sb.joins.leaky(0.1) and variants.describe("config:length=mean") == "config"
    assert variants.read("config/layer:length=minimum") == sb.joins.per_layer(sb.joins.config("minimum"))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("X", "unknown variant 'X'; choose from R, M, S, N, C, minmod"),
        ("leaky", "leaky needs a number: leaky:leak=0.1"),
        ("leaky:leak=2", "leak is 2.0; it must be at most 1"),
        ("leaky:leak=a", "leak is 'a'; it must be a number"),
        ("config:length=3", "unknown length 3; choose from mean, minimum, maximum, harmonic"),
        ("config:size=3", "config has no option 'size'; choose from length, decay, truncate, random"),
        ("C/layer", "has no inner products, so layers change nothing"),
        ("M/layer", "has no inner products"),
        ("nowhere:join", "No module named 'nowhere'"),
        ("math:pi", "math:pi is float; it must be a function"),
        (sb.joins.config, r"config makes a variant, it is none; call it, as in sb.joins.config\(\)"),
        (sb.gates.decay, "decay makes a variant, it is none"),
        (lambda rr, rm, mm: 1 / 0, "failed at RR = .*: division by zero"),
        (lambda m: m, "takes 1 arguments; give a function of .m, r. or of .RR, RM, MM."),
        (lambda rr, rm, mm: 1.0, r"gave 1.0; it must give two numbers \(wr, wm\)"),
        (lambda m, r: open("x"), "cannot be compiled: "),
    ],
)
def test_what_is_no_join_is_refused(given, words):
    problem = sb.problem("cartpole", **DEFAULTS)
    with pytest.raises(ValueError, match=words) as caught:
        problem.gradient(problem.init(), problem.sample(2), given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["config/layer", "leaky:leak=0.3", "mgda", "projected"])
def test_gradients_of_a_problem(name):
    problem = sb.problem("cartpole", **{**DEFAULTS, "steps": 30})
    theta, x0 = problem.init(1), problem.sample(8)
    found = problem.gradient(theta, x0, name)
    parts = [problem.gradient(theta, x0, letter) for letter in "RM"]
    for part, same in zip(parts, (found.regular, found.modified)):
        assert np.array_equal(part.value, same)
    expected = joins.join_arrays(variants.read(name), *([*problem.layers(part.value).values()] for part in parts))
    assert all(np.array_equal(a, b) for a, b in zip(problem.layers(found.value).values(), expected, strict=True))
    assert found.cosine == pytest.approx(problem.gradient(theta, x0, "C").cosine, rel=1e-9)
    assert found.norm2 == pytest.approx(np.sum(found.value.astype(float) ** 2)) and found.loss == parts[0].loss
    assert np.array_equal(found.x0, parts[0].x0)


def test_a_divergence_has_a_place():
    problem = sb.problem("cartpole", **DEFAULTS, duration=9e4)
    with pytest.raises(sb.DivergedError, match="time step"):
        problem.gradient(np.full(problem.n_parameters, 1e20, np.float32), problem.sample(4), "config/layer")


def halves(m, r):
    return 0.5 * m + 0.5 * r if m * r > 0 else 0.0  # which would hide NaN


def only_r(rr, rm, mm):
    return 1, 0


def test_joins_of_the_users():
    problem = sb.problem("cartpole", **DEFAULTS)
    theta, x0 = problem.init(1), problem.sample(8)
    c = problem.gradient(theta, x0, "C")
    r, m = c.regular, c.modified
    expected = np.where(r * m > 0, 0.5 * m + 0.5 * r, 0)
    np.testing.assert_allclose(problem.gradient(theta, x0, halves).value, expected, rtol=1e-6)
    assert np.array_equal(problem.gradient(theta, x0, only_r).value, r)
    assert np.array_equal(problem.gradient(theta, x0, sb.joins.per_layer(only_r)).value, r)
    assert variants.describe(halves) == f"{__name__}:halves"
    assert variants.describe(sb.joins.per_layer(only_r)) == f"{__name__}:only_r/layer"
    assert variants.read(f"{__name__}:only_r/layer").function.__code__ is only_r.__code__
    value, found = joined(halves, np.array([1.0, 2.0]), np.array([np.nan, 2.0]))
    assert np.isnan(value[0]) and value[1] == 2 and math.isnan(found.norm2)
    value, _ = joined(only_r, np.array([1.0, 2.0]), np.array([np.nan, 2.0]))
    assert np.isnan(value).all()


@pytest.mark.parametrize("variant", [sb.joins.leaky(0.1), "config/layer:length=minimum", only_r])
def test_runs_keep_their_join_and_go_on(variant, tmp_path):
    problem = sb.problem("cartpole", **DEFAULTS)
    whole = sb.train(problem, variant, 2, **COUNTS)
    assert whole.config["variant"] == variants.describe(variant) and np.isfinite(whole.history["cosine"]).all()
    sb.train(problem, variant, 1, out=tmp_path / "run.h5", **COUNTS)
    stored = sb.load(tmp_path / "run.h5").config
    again = sb.train(problem, settings_of(stored).variant, 2, out=tmp_path / "run.h5", resume=True, **COUNTS)
    assert np.array_equal(whole.theta, again.theta)
    assert not np.array_equal(whole.theta, sb.train(problem, "C", 2, **COUNTS).theta)
    with pytest.raises(ValueError, match=r"variant: .* in the file, 'mean' given"):
        sb.train(problem, "mean", 2, out=tmp_path / "run.h5", resume=True, **COUNTS)


OWN = """
def longer(rr, rm, mm):
    return (1, 0) if rr > mm else (0, 1)

def other(rr, rm, mm):
    return 0, 1
"""
WORDS = ("cartpole", "train", "--steps", 4, "--train-count", 8, "--test-count", 4, "-q")


def test_the_users_join_on_the_command_line(run, tmp_path):
    (tmp_path / "my_joins.py").write_text(OWN)
    (tmp_path / "elsewhere").mkdir()
    assert run(*WORDS, "--epochs", 1, "--variant", "my_joins.py:longer", "--out", "run.h5").code == 0
    assert sb.load("run.h5").config["variant"] == "my_joins.py:longer"
    left = run(*WORDS, "--epochs", 2, "--out", "run.h5", "--resume")
    assert left.code == 2 and "--variant my_joins.py:longer" in left.err and "\n" not in left.err.strip()
    left = run(*WORDS, "--epochs", 2, "--out", "run.h5", "--resume", "--variant", "my_joins:other")
    assert left.code == 2 and "variant: 'longer' in the file, 'other' given" in left.err
    assert run(*WORDS, "--epochs", 2, "--out", "run.h5", "--resume", "--variant", "my_joins:longer").code == 0
    assert len(sb.load("run.h5").history["epoch"]) == 2  # where the function lies does not count


@pytest.mark.slow
def test_plans_and_reports(run, tmp_path):
    (tmp_path / "plan.toml").write_text(
        'task = "cartpole"\n[options]\nsteps = 4\nhidden = [4]\n[train]\nepochs = 1\ntrain_count = 8\ntest_count = 4\n'
        'variant = ["C", "config", "leaky:leak=0.5", "M:decay=0.4"]\n'
    )
    assert run("sweep", "plan.toml", "--out", "runs", "--jobs", 1, "-q").code == 0
    names = sorted(path.name for path in (tmp_path / "runs").glob("*.h5"))
    assert len(names) == 4 and any("-leaky-leak-0.5-none-seed0-" in name for name in names)
    assert run("report", "runs", "-q").code == 0
    text = (tmp_path / "runs" / "report" / "report.md").read_text()
    assert all(name in text for name in ("config", "leaky:leak=0.5", "M:decay=0.4"))
    assert run("plot", *(f"runs/{name}" for name in names), "--out", "curves.png", "-q").code == 0


@pytest.mark.slow
def test_a_compiled_join_of_the_users_is_found_again(tmp_path):
    """Its code counts, and nothing that differs between processes: sets of words have another order in each."""
    (tmp_path / "my_joins.py").write_text("def half(m, r):\n    return 0.5 * m\n")
    program = "import my_joins; from stablebptt.tasks import joins; print(type(joins.of(my_joins.half).part()).fingerprint())"
    path = os.pathsep.join([str(tmp_path), *(each for each in sys.path if each)])
    found = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True,
        ).stdout
        for seed in "1234"
    }  # fmt: skip
    assert len(found) == 1 and found.pop().strip()
