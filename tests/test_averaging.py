"""The average of the weights: what it is, that it is kept exactly, and that the model gets its own weights back."""

import pytest
import torch
from torch import Tensor, nn

from bytelm.averaging import WeightAverage, decay_at
from bytelm.errors import CheckpointError


def small_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))


@torch.no_grad()
def move(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for weight in model.parameters():
        weight.add_(torch.randn(weight.shape, generator=generator))


def values(model: nn.Module) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def equal(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_the_average_is_the_recurrence_written_out() -> None:
    model = small_model()
    average = WeightAverage(model, 0.6)
    expected = {name: weight.double() for name, weight in values(model).items()}
    for step in range(1, 20):
        move(model, step)
        average.update(step)
        decay = min(0.6, (1 + step) / (10 + step))
        expected = {
            name: decay * expected[name] + (1 - decay) * weight.double() for name, weight in values(model).items()
        }
    for name, tensor in average.tensors().items():
        torch.testing.assert_close(tensor.double(), expected[name], rtol=1e-5, atol=1e-6)


def test_the_first_weights_are_soon_forgotten() -> None:
    forgotten = 1.0
    for step in range(1, 101):
        forgotten *= decay_at(step, 0.9999)
    assert forgotten < 1e-6


def test_the_decay_grows_to_what_was_asked_for_and_no_further() -> None:
    decays = [decay_at(step, 0.99) for step in range(1, 2000)]
    assert decays == sorted(decays)
    assert decays[-1] == 0.99


def test_inside_the_model_holds_the_averages_and_afterwards_its_own_weights_even_after_an_error() -> None:
    model = small_model()
    average = WeightAverage(model, 0.5)
    places = [weight.data_ptr() for weight in model.parameters()]
    move(model, 1)
    average.update(1)
    own, averaged = values(model), {name: tensor.clone() for name, tensor in average.tensors().items()}
    assert not equal(own, averaged)
    with pytest.raises(RuntimeError), average.in_place():
        assert equal(values(model), averaged)
        raise RuntimeError
    assert equal(values(model), own)
    assert equal(average.tensors(), averaged)
    assert [weight.data_ptr() for weight in model.parameters()] == places


def test_an_average_that_was_stored_and_loaded_continues_bit_for_bit() -> None:
    straight, resumed = small_model(), small_model()
    average, other = WeightAverage(straight, 0.9), WeightAverage(resumed, 0.9)
    for step in range(1, 4):
        move(straight, step)
        average.update(step)
    resumed.load_state_dict(straight.state_dict())
    other.load({name: tensor.clone() for name, tensor in average.tensors().items()})
    for step in range(4, 7):
        for model, its_average in ((straight, average), (resumed, other)):
            move(model, step)
            its_average.update(step)
    assert equal(average.tensors(), other.tensors())


def test_weights_that_are_not_trained_are_not_averaged() -> None:
    model = small_model()
    model[0].requires_grad_(False)
    assert set(WeightAverage(model, 0.9).tensors()) == {"1.weight", "1.bias"}


def test_an_average_of_another_model_is_refused() -> None:
    average = WeightAverage(small_model(), 0.9)
    with pytest.raises(CheckpointError, match="not one of this model"):
        average.load(WeightAverage(nn.Sequential(nn.Linear(3, 5)), 0.9).tensors())
    with pytest.raises(CheckpointError, match="not one of this model"):
        average.load({})
