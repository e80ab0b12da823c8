"""Typed structs and generic functions: immutability, dispatch, identity."""

import numpy as np
import pytest
from numba import njit
from numba.core.errors import TypingError

from stablebptt.adjoint.generics import step_vjp
from stablebptt.kernels.cartpole import cartpole
from stablebptt.kernels.core.dispatch import generic, implements, like
from stablebptt.kernels.core.structs import Struct
from stablebptt.kernels.generics import System, step


class Spring(System):
    stiffness: float
    dt: float


@implements(step, Spring)
def _step(system, x, c, x_next):
    x_next[1] = x[1] + system.dt * (c[0] - system.stiffness * x[0])
    x_next[0] = x[0] + system.dt * x_next[1]


@njit
def advance(system, x, c):
    x_next = np.empty_like(x)
    step(system, x, c, x_next)
    return x_next


def test_structs_are_immutable():
    spring = Spring(2.0, 0.1)
    with pytest.raises(AttributeError):
        spring.dt = 0.2
    with pytest.raises(TypeError):
        Spring(2.0)
    assert repr(spring) == "Spring(stiffness=2.0, dt=0.1)"


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_compiled_and_python_methods_agree(dtype):
    spring, x, c = Spring(dtype(2), dtype(0.1)), np.array([1, 0.5], dtype), np.array([0.3], dtype)
    expected = np.empty_like(x)
    step(spring, x, c, expected)
    result = advance(spring, x, c)
    assert result.dtype == dtype
    np.testing.assert_allclose(result, expected, rtol=2e-7)


def test_dispatch_is_on_the_type():
    x, c = np.array([0.1, 0.2, 3.0, 0.4]), np.array([0.5])
    for system in (Spring(2.0, 0.1), cartpole(0.1)):
        expected = np.empty_like(x)
        step(system, x, c, expected)
        np.testing.assert_allclose(advance(system, x, c)[:2], expected[:2], rtol=1e-14)
    assert not np.array_equal(advance(Spring(2.0, 0.1), x, c)[:2], advance(cartpole(0.1), x, c)[:2])


def test_subclasses_inherit_methods():
    class Stiff(Spring):
        pass

    x, c = np.array([1.0, 0.0]), np.zeros(1)
    assert np.array_equal(advance(Stiff(2.0, 0.1), x, c), advance(Spring(2.0, 0.1), x, c))


def test_a_missing_method_says_what_to_write():
    with pytest.raises(TypeError, match=r"Spring has no method for step_vjp.*@implements\(step_vjp, Spring\)"):
        step_vjp(Spring(1.0, 1.0), *[np.zeros(1)] * 5)
    call = njit(lambda s, a: step_vjp(s, a, a, a, a, a))
    with pytest.raises(TypingError, match="Spring has no method for step_vjp"):
        call(Spring(1.0, 1.0), np.zeros(2))
    with pytest.raises(TypingError, match="must be a Struct"):
        njit(lambda s, a: step(s, a, a, a))(1.0, np.zeros(2))


def test_structs_can_be_made_in_compiled_code_and_used_as_constants():
    frozen = Spring(2.0, 0.1)

    @njit
    def twice(x, c):
        half = Spring(frozen.stiffness, frozen.dt / 2)
        first, second = np.empty_like(x), np.empty_like(x)
        step(half, x, c, first)
        step(half, first, c, second)
        return second

    x, c = np.array([1.0, 0.0]), np.zeros(1)
    once = advance(Spring(2.0, 0.05), x, c)
    np.testing.assert_allclose(twice(x, c), advance(Spring(2.0, 0.05), once, c), rtol=1e-15)


def test_a_redefinition_is_another_type():
    def define(sign):
        class Local(Struct):
            a: float

        @generic
        def value(thing):
            """A number."""

        if sign > 0:

            @implements(value, Local)
            def _value(thing):
                return thing.a
        else:

            @implements(value, Local)
            def _value(thing):
                return -thing.a

        return njit(lambda thing: value(thing)), Local(3.0)

    (plus, first), (minus, second) = define(1), define(-1)
    assert plus(first) == 3 and minus(second) == -3
    assert first._numba_type_ != second._numba_type_


def test_a_method_added_later_is_seen():
    class Late(Struct):
        a: float

    @generic
    def area(thing):
        """A number."""

    call = njit(lambda thing: area(thing))
    thing = Late(2.0)
    with pytest.raises(TypingError, match="Late has no method for area"):
        call(thing)

    @implements(area, Late)
    def _area(thing):
        return thing.a * thing.a

    assert njit(lambda thing: area(thing))(thing) == 4.0


def test_like_keeps_the_precision():
    half = njit(lambda x: x * like(x, 0.5))
    for dtype in (np.float32, np.float64):
        assert like(dtype(1), 0.5).dtype == dtype
        assert np.asarray(half(np.full(3, 3, dtype))).dtype == dtype


class Part(System):
    number: float


class Whole(Struct):
    part: Part
    values: np.ndarray


@implements(step, Part)
def _step_part(part, x, c, x_next):
    x_next[0] = part.number * x[0] + c[0]


def test_structs_in_structs():
    """They are passed, made and taken apart in compiled code; a new method of a part makes another type of the whole."""

    @njit
    def run(whole):
        again, out = Whole(whole.part, whole.values + 1), np.zeros(1)
        step(again.part, whole.values, again.values, out)
        return out[0]

    whole = Whole(Part(2.0), np.array([10.0]))
    before = whole._numba_type_
    assert run(whole) == 31 and whole._numba_type_ is before and dict(before.fields)["part"] is whole.part._numba_type_

    @implements(step, Part)
    def changed(part, x, c, x_next):
        x_next[0] = part.number * x[0] - c[0]

    assert whole._numba_type_ != before and run(whole) == 9
