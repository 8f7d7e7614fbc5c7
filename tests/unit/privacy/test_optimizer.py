"""A step is the noised sum of clipped gradients, each of one person; nothing else gets through."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import nn

from fedpalm.errors import StateError
from fedpalm.plan import PrivacySettings
from fedpalm.privacy.optimizer import PersonOptimizer
from fedpalm.privacy.randomness import SecretRandom, SeededRandom
from tests.support.private_training import Noiseless

CLIP, SIGMA = 0.5, 2.0
SETTINGS = PrivacySettings(
    unit="subject", clip_norm=CLIP, noise_multiplier=SIGMA, sampling_rate=0.5, population=8
)


class Step:
    """Two parameters, plain gradient descent with rate 1, and what the last step moved by."""

    def __init__(self, randomness=None, settings=SETTINGS, shapes=((40, 30), ())):
        self.parameters = [nn.Parameter(torch.zeros(shape)) for shape in shapes]
        descent = torch.optim.SGD(self.parameters, lr=1.0)
        self.optimizer = PersonOptimizer(descent, settings, randomness or Noiseless())

    def add(self, person, *gradients):
        loss = sum((p * g).sum() for p, g in zip(self.parameters, gradients, strict=True))
        self.optimizer.add(person, loss)

    def moved(self):
        before = [p.detach().clone() for p in self.parameters]
        self.optimizer.step()
        return torch.cat(
            [(b - p.detach()).flatten() for b, p in zip(before, self.parameters, strict=True)]
        )


def gradients(scale, seed=0):
    drawn = torch.Generator().manual_seed(seed)
    return scale * torch.randn(40, 30, generator=drawn), scale * torch.randn((), generator=drawn)


@given(st.lists(st.floats(0, 2.0**100, width=32), min_size=1, max_size=5))
def test_each_person_is_clipped_over_all_parameters_and_divided_by_the_declared_number(scales):
    step, expected = Step(), np.zeros(1201)
    for person, scale in enumerate(scales):
        drawn = gradients(scale, person)
        step.add(person, *drawn)
        whole = np.concatenate([one.double().numpy().ravel() for one in drawn])
        norm = np.linalg.norm(whole)
        expected += whole * min(1.0, CLIP / norm) if norm else 0
    np.testing.assert_allclose(step.moved().numpy(), expected / 4, rtol=1e-6, atol=1e-7 * CLIP)


def test_noise_has_the_charged_variance_whether_anybody_was_drawn_or_not():
    step = Step(SeededRandom(1))
    for drawn in (False, True):
        if drawn:
            step.add(0, *gradients(0.0))
        noise = step.moved().double().numpy() * 4 / (SIGMA * CLIP)
        squares, freedom = float(noise @ noise), noise.size
        assert stats.chi2.ppf(1e-9, freedom) < squares < stats.chi2.isf(1e-9, freedom)


@pytest.mark.parametrize("source", [SecretRandom, lambda: SeededRandom(1)])
def test_no_step_has_the_noise_of_another_or_of_another_start(source):
    step, again = Step(source()), Step(SecretRandom())
    drawn = torch.stack([step.moved(), step.moved(), step.moved(), again.moved()]).double()
    likeness = torch.corrcoef(drawn).numpy()[np.triu_indices(4, 1)]
    assert np.abs(likeness).max() * np.sqrt(1201) < stats.norm.isf(1e-9)


def test_a_parameter_that_nobody_reached_is_noised_all_the_same():
    step = Step(SeededRandom(1))
    step.optimizer.add(0, step.parameters[0].sum())
    assert step.moved()[-1] != 0


def test_a_gradient_of_zero_adds_nothing():
    step = Step()
    step.add(0, *gradients(0.0))
    assert not step.moved().any()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_gradient_that_is_not_finite_counts_as_zero_and_is_counted(bad):
    """An error here would tell who sees the site stop that this person is there."""
    step = Step()
    broken = gradients(1.0)[0]
    broken[3, 4] = bad
    step.add(0, broken, torch.tensor(1.0))
    step.add(1, *gradients(0.01, 1))
    expected = torch.cat([one.flatten() for one in gradients(0.01, 1)]) / 4
    torch.testing.assert_close(step.moved(), expected)
    assert step.optimizer.left_out == 1


def test_a_person_in_two_batches_of_a_step_is_refused_and_in_two_steps_is_not():
    step = Step()
    step.add(0, *gradients(1.0))
    with pytest.raises(StateError, match="two batches"):
        step.add(0, *gradients(1.0))
    assert step.moved().any()
    step.add(0, *gradients(1.0))


@pytest.mark.parametrize("how", ["add", "step"])
def test_a_gradient_that_was_not_clipped_is_refused(how):
    step = Step()
    step.parameters[1].grad = torch.ones(())
    with pytest.raises(StateError, match="did not clip"):
        step.add(0, *gradients(1.0)) if how == "add" else step.optimizer.step()
    assert not step.parameters[1].detach().any()


def test_a_step_leaves_no_gradient_sum_or_noise_behind():
    step = Step(SeededRandom(1))
    step.add(0, *gradients(1.0))
    step.moved()
    assert all(p.grad is None and p.summed_grad is None for p in step.parameters)
    quiet = Step()
    quiet.add(0, *gradients(1.0))
    quiet.moved()
    assert not quiet.moved().any()


def test_what_cuts_batches_or_brings_its_own_gradient_is_refused():
    step = Step()
    with pytest.raises(StateError, match="cut for memory"):
        step.optimizer.signal_skip_step()
    with pytest.raises(TypeError, match="closure"):
        step.optimizer.step(lambda: 0.0)


def test_what_a_method_adds_by_itself_comes_after_the_noise_and_is_not_clipped():
    step = Step()
    step.add(0, *gradients(1e6))

    def pull(_):
        step.parameters[1].grad += 1000.0

    step.optimizer.attach_step_hook(pull)
    assert step.moved()[-1] == pytest.approx(1000, abs=1)
