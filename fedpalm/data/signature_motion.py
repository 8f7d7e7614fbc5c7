"""How a writer moves: the sigma-lognormal model of a signature, its variation and its imitation.

A signature is a plan of strokes. Stroke k turns from the direction theta_s to theta_e along an arc of
length D with the speed of a lognormal from t0 on, and neighbours overlap in time:

    phi(t) = theta_s + (theta_e - theta_s) / 2 (1 + erf((ln(t - t0) - mu) / (sigma sqrt 2)))
    x(t) = D / (theta_e - theta_s) (sin phi - sin theta_s)
    y(t) = D / (theta_e - theta_s) (cos theta_s - cos phi)

Source: Plamondon's kinematic theory; O'Reilly and Plamondon 2009, doi 10.1016/j.patcog.2008.10.017.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy.special import erf

Array = npt.NDArray[np.float64]

MIN_STROKES, MAX_STROKES = 10, 20
STEP_S = 0.002
_NEARLY_STRAIGHT = 1e-3

# Variation of one genuine signature (standard deviations), from the same writer's next.
LENGTH_SHARE = 0.05
TURN_RAD = 0.05
START_S = 0.005
SHAPE_SHARE = 0.03
SCALE_SHARE, TILT_RAD, SHEAR = 0.04, 0.035, 0.04


@dataclass(frozen=True)
class Plan:
    """Strokes of one signature, arrays of (K,): length D (an x-height is 1), start t0 in s, mu and sigma
    of ln s, directions theta_s and theta_e in rad (y up), and whether the pen is down.

    ``tremor`` is the deviation of an unsure hand from the path; ``slow`` how much longer all takes.
    """

    length: Array
    start_s: Array
    mu: Array
    sigma: Array
    theta_s: Array
    theta_e: Array
    down: npt.NDArray[np.bool_]
    tremor: float = 0.0
    slow: float = 1.0


@dataclass(frozen=True)
class Path:
    """Where the pen is, every 2 ms: ``xy`` (T, 2), ``speed`` (T,) per s, ``down`` (T,)."""

    xy: Array
    speed: Array
    down: npt.NDArray[np.bool_]


def draw_plan(rng: np.random.Generator) -> Plan:
    """A writer: a capital, a run of letters up and down the line, often a flourish."""
    slant = rng.uniform(-0.15, 0.55)
    height = rng.uniform(0.8, 1.25)
    advance = rng.uniform(0.25, 0.75)  # how far letters lean into the line's direction
    roundness = rng.uniform(0.5, 2.2)
    clockwise = -1.0 if rng.random() < 0.3 else 1.0
    capital = int(rng.integers(2, 5))
    flourish = int(rng.integers(0, 3))
    letters = int(rng.integers(MIN_STROKES, MAX_STROKES + 1)) - capital - flourish
    strokes: list[tuple[float, float, float, bool]] = []
    baseline = 0.0

    def add(length: float, direction: float, bend: float, down: bool = True) -> None:
        strokes.append((length, direction - bend / 2, direction + bend / 2, down))

    up, fall = np.pi / 2 - slant, -np.pi / 2 - slant
    rising = bool(rng.random() < 0.4)
    for _ in range(capital):
        direction = (up if rising else fall) + rng.normal(0.0, 0.5)
        length = height * rng.uniform(1.5, 2.8)
        add(length, direction, rng.uniform(-1, 1) * 2.6)
        baseline += length * np.sin(direction)
        rising = not rising
    if rng.random() < 0.65:
        reach = rng.uniform(0.5, 1.1)
        add(np.hypot(reach, baseline), np.arctan2(-baseline, reach), 0.2, down=False)
        baseline = 0.0
    rising = bool(rng.random() < 0.7)
    for _ in range(letters):
        lean = advance * rng.uniform(0.4, 1.4)
        tall = 1.0 if rng.random() > 0.22 else rng.uniform(1.6, 2.3)
        # The way back to the line: what went up must come down, or the name would climb away.
        drift = float(np.clip(baseline, -2.0, 2.0))
        length = height * tall * rng.uniform(0.55, 1.15) + (-drift if rising else drift) * 0.6
        length = max(0.25, length)
        direction = up - lean if rising else fall + lean
        bend = clockwise * roundness * rng.uniform(0.3, 1.3)
        if rng.random() < 0.25:
            bend = -bend
        add(length, direction, bend)
        baseline += length * np.sin(direction)
        rising = not rising
        if rng.random() < 0.10 and len(strokes) + flourish < MAX_STROKES:
            reach = rng.uniform(0.3, 0.8)
            add(np.hypot(reach, baseline), np.arctan2(-baseline, reach), 0.2, down=False)
            baseline = 0.0
    back = 0.0
    for turn in range(flourish):
        if turn == 0 and rng.random() < 0.5:
            reach, below = -rng.uniform(1.5, 4.0), -baseline - rng.uniform(0.6, 1.2)
            add(np.hypot(reach, below), np.arctan2(below, reach), 0.3, down=False)
        back = np.pi - back if turn else rng.normal(0.1, 0.25)
        add(height * rng.uniform(2.5, 5.5), back, rng.uniform(-1.2, 1.2))
    strokes = strokes[:MAX_STROKES]
    count = len(strokes)
    mu = rng.uniform(-2.0, -1.0) * 0.5 + rng.uniform(-2.0, -1.0, count) * 0.5
    sigma = rng.uniform(0.10, 0.40) * 0.5 + rng.uniform(0.10, 0.40, count) * 0.5
    overlap = rng.uniform(0.45, 0.85) * rng.uniform(0.85, 1.15, count)
    start = np.concatenate([[0.0], np.cumsum(np.exp(mu) * overlap)[:-1]])
    curves = np.asarray([stroke[:3] for stroke in strokes])
    down = np.asarray([stroke[3] for stroke in strokes])
    return Plan(curves[:, 0], start, mu, sigma, curves[:, 1], curves[:, 2], down)


def sign(plan: Plan, rng: np.random.Generator, amount: float = 1.0) -> Plan:
    """The same writer once more: every stroke a little different, ``amount`` times as much."""
    count = len(plan.length)
    return replace(
        plan,
        length=plan.length * np.maximum(0.2, 1 + LENGTH_SHARE * amount * rng.normal(size=count)),
        start_s=plan.start_s + START_S * amount * rng.normal(size=count),
        mu=plan.mu * (1 + SHAPE_SHARE * amount * rng.normal(size=count)),
        sigma=np.maximum(0.05, plan.sigma * (1 + SHAPE_SHARE * amount * rng.normal(size=count))),
        theta_s=plan.theta_s + TURN_RAD * amount * rng.normal(size=count),
        theta_e=plan.theta_e + TURN_RAD * amount * rng.normal(size=count),
    )


def forge(plan: Plan, rng: np.random.Generator, amount: float = 1.0) -> Plan:
    """A skilled forgery: the plan known, the movement not.

    Variation 2.5 to 4 times a genuine one's, slower, with tremor, and pen lifts that the writer has not
    or without some that he has.
    """
    copied = sign(plan, rng, amount * rng.uniform(2.5, 4.0))
    inner = np.arange(1, len(copied.down) - 1)
    changed = rng.choice(inner, size=int(rng.integers(1, 3)), replace=False)
    lifts = np.flatnonzero(~copied.down)
    if len(lifts) and rng.random() < 0.5:
        changed = rng.choice(lifts, size=1)
    copied = replace(copied, tremor=rng.uniform(0.015, 0.035), slow=rng.uniform(1.3, 2.2))
    for at in sorted(changed, reverse=True):
        if copied.down[at]:
            copied = _interrupted(copied, int(at))
        else:
            down = copied.down.copy()
            down[at] = True
            copied = replace(copied, down=down)
    return copied


def move(plan: Plan, rng: np.random.Generator) -> Path:
    """The pen's path. ``rng`` draws the tremor; a sure hand does not use it."""
    end = float((plan.start_s + np.exp(plan.mu + 3.0 * plan.sigma)).max())
    t = np.arange(float(plan.start_s.min()), end, STEP_S / plan.slow)[None, :]
    since = np.maximum(t - plan.start_s[:, None], 1e-9)
    done = 0.5 * (
        1.0 + erf((np.log(since) - plan.mu[:, None]) / (plan.sigma[:, None] * np.sqrt(2.0)))
    )
    turn = plan.theta_e - plan.theta_s
    turn = np.where(np.abs(turn) < _NEARLY_STRAIGHT, _NEARLY_STRAIGHT, turn)[:, None]
    phi = plan.theta_s[:, None] + turn * done
    radius = plan.length[:, None] / turn
    x = (radius * (np.sin(phi) - np.sin(plan.theta_s)[:, None])).sum(axis=0)
    y = (radius * (np.cos(plan.theta_s)[:, None] - np.cos(phi))).sum(axis=0)
    each = plan.length[:, None] * np.diff(done, axis=1, append=done[:, -1:]) / STEP_S
    speed = np.hypot(np.gradient(x), np.gradient(y)) / STEP_S
    lifted = each[~plan.down].sum(axis=0) > 0.5 * np.maximum(each.sum(axis=0), 1e-9)
    xy = np.stack([x, y], axis=1)
    if plan.tremor:
        xy = xy + plan.tremor * _trembling(t.shape[1], rng)
    return Path(xy, speed, ~lifted)


def _interrupted(plan: Plan, at: int) -> Plan:
    """Stroke ``at`` in two, with the pen off the paper for a moment between them."""

    def thrice(values: Array) -> Array:
        return np.insert(values, at + 1, [values[at], values[at]])

    length, start_s = thrice(plan.length), thrice(plan.start_s)
    theta_s, theta_e = thrice(plan.theta_s), thrice(plan.theta_e)
    middle = (plan.theta_s[at] + plan.theta_e[at]) / 2
    theta_e[at : at + 2] = middle
    theta_s[at + 1 : at + 3] = middle
    theta_e[at + 2] = plan.theta_e[at]
    length[at : at + 3] *= np.array([0.45, 0.12, 0.45])
    pause = 0.5 * float(np.exp(plan.mu[at]))
    start_s[at + 1 :] += pause
    start_s[at + 2 :] += pause
    down = np.insert(plan.down, at + 1, [False, True])
    return replace(
        plan,
        length=length,
        start_s=start_s,
        mu=thrice(plan.mu),
        sigma=thrice(plan.sigma),
        theta_s=theta_s,
        theta_e=theta_e,
        down=down,
    )


def _trembling(steps: int, rng: np.random.Generator) -> Array:
    """(T, 2) noise of 6 to 12 Hz and unit deviation."""
    t = np.arange(steps) * STEP_S
    waves = [
        np.sin(2 * np.pi * rng.uniform(6.0, 12.0, 2) * t[:, None] + rng.uniform(0, 2 * np.pi, 2))
        for _ in range(4)
    ]
    noise: Array = np.sum(waves, axis=0) / np.sqrt(2.0)
    return noise
