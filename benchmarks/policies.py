"""Time of a policy for one state and for a batch, in plain NumPy: python benchmarks/policies.py"""

import argparse
import time

import stablebptt as sb
from stablebptt.tasks import policies

BATCH, CALLS = 256, 200


def seconds(policy, states, repeats):
    """The shortest of many times of a call."""
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        for _ in range(CALLS):
            policy(states)
        times.append((time.perf_counter() - begin) / CALLS)
    return min(times)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=30)
    repeats = parser.parse_args().repeats
    for task in sb.tasks.TASKS:
        problem = sb.problem(task)
        policy, states = policies.of(problem, problem.init()), problem.sample(BATCH)
        one, many = seconds(policy, states[0], repeats), seconds(policy, states, repeats)
        print(f"{task:<10} {1e6 * one:6.1f} us for a state, {1e6 * many:7.1f} us for {BATCH}")


if __name__ == "__main__":
    main()
