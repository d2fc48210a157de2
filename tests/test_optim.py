import itertools
import math

import pytest
import torch
from torch import nn

from bytelm.config import RunConfig, TrainConfig
from bytelm.errors import CheckpointError
from bytelm.model import ByteLM
from bytelm.optim import learning_rate, load_optimizer_tensors, make_optimizer, optimizer_tensors, set_learning_rate

TRAIN = TrainConfig(learning_rate=0.01, warmup_fraction=0.1, final_learning_rate_ratio=0.2, weight_decay=0.5)


def small_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(8, 4), nn.RMSNorm(4), nn.Linear(4, 8))


def step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    ids = torch.randint(0, 8, (3,), generator=torch.Generator().manual_seed(seed))
    nn.functional.cross_entropy(model(ids), ids).backward()
    optimizer.step()
    optimizer.zero_grad()


def test_the_rate_starts_at_zero_peaks_after_the_warm_up_and_ends_at_the_final_ratio() -> None:
    assert learning_rate(0.0, TRAIN) == 0.0
    assert learning_rate(0.05, TRAIN) == pytest.approx(0.005)
    assert learning_rate(0.1, TRAIN) == 0.01
    assert learning_rate(1.0, TRAIN) == pytest.approx(0.002)


def test_half_way_down_the_cosine_lies_the_mean_of_peak_and_end() -> None:
    assert learning_rate(0.55, TRAIN) == pytest.approx((0.01 + 0.002) / 2)


def test_the_rate_rises_then_falls_without_a_jump() -> None:
    points = [learning_rate(i / 1000, TRAIN) for i in range(1001)]
    peak = points.index(max(points))
    assert peak == 100
    assert all(a < b for a, b in itertools.pairwise(points[: peak + 1]))
    assert all(a > b for a, b in itertools.pairwise(points[peak:]))
    assert max(abs(a - b) for a, b in itertools.pairwise(points)) < 0.00011


def test_past_the_end_of_a_budget_the_rate_stays() -> None:
    assert learning_rate(1.7, TRAIN) == learning_rate(1.0, TRAIN)


def test_without_a_warm_up_the_rate_starts_at_its_peak() -> None:
    assert learning_rate(0.0, TRAIN.model_copy(update={"warmup_fraction": 0.0})) == 0.01


def test_matrices_decay_and_norms_biases_and_embeddings_do_not() -> None:
    model = small_model()
    optimizer = make_optimizer(model, TRAIN)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)  # without a gradient only the decay moves a weight
    optimizer.step()
    moved = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    assert moved == {"2.weight"}
    torch.testing.assert_close(model[2].weight, before["2.weight"] * (1 - 0.01 * 0.5))


def test_of_the_byte_model_only_the_weights_of_linear_layers_decay() -> None:
    config = RunConfig()
    model = ByteLM(config.model, config.heads)
    decaying, others = make_optimizer(model, TRAIN).param_groups
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert {names[id(parameter)].rpartition(".")[2] for parameter in decaying["params"]} == {"weight"}
    assert {names[id(parameter)].rpartition(".")[2] for parameter in others["params"]} == {
        "embedding",
        "gain",
        "query_key_gain",
    }


def test_one_step_is_the_step_of_the_paper() -> None:
    # With bias correction the first step has length rate in every coordinate, whatever the gradient's size.
    weight = nn.Linear(2, 1, bias=False)
    optimizer = make_optimizer(weight, TRAIN.model_copy(update={"weight_decay": 0.0}))
    before = weight.weight.detach().clone()
    weight.weight.grad = torch.tensor([[5.0, -0.001]])
    set_learning_rate(optimizer, 0.125)
    optimizer.step()
    torch.testing.assert_close(weight.weight - before, torch.tensor([[-0.125, 0.125]]), atol=1e-5, rtol=0)


def test_a_parameter_that_is_not_trained_is_left_out() -> None:
    model = small_model()
    model[0].weight.requires_grad_(False)
    optimizer = make_optimizer(model, TRAIN)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 3


def test_state_that_was_stored_and_loaded_continues_bit_for_bit() -> None:
    straight, resumed = small_model(), small_model()
    optimizer = make_optimizer(straight, TRAIN)
    other = make_optimizer(resumed, TRAIN)
    for seed in range(3):
        step(straight, optimizer, seed)
    resumed.load_state_dict(straight.state_dict())
    load_optimizer_tensors(other, resumed, optimizer_tensors(optimizer, straight))
    for seed in range(3, 6):
        step(straight, optimizer, seed)
        step(resumed, other, seed)
    for a, b in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_loaded_state_shares_no_memory_with_what_was_given() -> None:
    model = small_model()
    optimizer = make_optimizer(model, TRAIN)
    step(model, optimizer, 0)
    stored = {name: tensor.clone() for name, tensor in optimizer_tensors(optimizer, model).items()}
    load_optimizer_tensors(optimizer, model, stored)
    kept = {name: tensor.clone() for name, tensor in stored.items()}
    step(model, optimizer, 1)
    assert all(torch.equal(stored[name], kept[name]) for name in kept)


def test_state_of_another_model_is_refused() -> None:
    model = small_model()
    optimizer = make_optimizer(model, TRAIN)
    step(model, optimizer, 0)
    tensors = optimizer_tensors(optimizer, model)
    wider = nn.Sequential(nn.Embedding(8, 6), nn.RMSNorm(6), nn.Linear(6, 8))
    with pytest.raises(CheckpointError, match=r"0\.weight"):
        load_optimizer_tensors(make_optimizer(wider, TRAIN), wider, tensors)
    with pytest.raises(CheckpointError, match=r"2\.weight"):
        load_optimizer_tensors(make_optimizer(model[:2], TRAIN), model[:2], tensors)


def test_all_parameters_get_the_rate_that_is_set() -> None:
    optimizer = make_optimizer(small_model(), TRAIN)
    set_learning_rate(optimizer, 0.25)
    assert all(math.isclose(group["lr"], 0.25) for group in optimizer.param_groups)
