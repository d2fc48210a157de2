"""The optimizers against what their papers write, and their state stored and loaded bit for bit."""

import math
from typing import Literal

import pytest
import torch
from torch import nn

from bytelm.config import RunConfig, TrainConfig
from bytelm.errors import CheckpointError
from bytelm.model import ByteLM
from bytelm.muon import Muon, orthogonalised
from bytelm.optim import Optimizer, load_optimizer_tensors, make_optimizer, optimizer_tensors, set_learning_rate

TRAIN = TrainConfig(learning_rate=0.01, weight_decay=0.5)
MUON = TrainConfig(optimizer="muon", learning_rate=0.01, weight_decay=0.5, muon_momentum=0.9)


def small_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(8, 4), nn.RMSNorm(4), nn.Linear(4, 8))


def step(model: nn.Module, optimizer: Optimizer, seed: int) -> None:
    ids = torch.randint(0, 8, (3,), generator=torch.Generator().manual_seed(seed))
    nn.functional.cross_entropy(model(ids), ids).backward()
    optimizer.step()
    optimizer.zero_grad()


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
    model[0].requires_grad_(False)
    optimizer = make_optimizer(model, TRAIN)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 3


@pytest.mark.parametrize("train", [TRAIN, MUON])
def test_state_that_was_stored_and_loaded_continues_bit_for_bit(train: TrainConfig) -> None:
    straight, resumed = small_model(), small_model()
    optimizer, other = make_optimizer(straight, train), make_optimizer(resumed, train)
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


def muon_step(
    weight: torch.Tensor, gradient: torch.Tensor, mean: torch.Tensor, train: TrainConfig
) -> tuple[torch.Tensor, torch.Tensor]:
    """One step as Jordan et al. write it, with the rate of Liu et al.; float32 throughout."""
    mean = train.muon_momentum * mean + (1 - train.muon_momentum) * gradient
    update = (1 - train.muon_momentum) * gradient + train.muon_momentum * mean
    tall = update.shape[0] > update.shape[1]
    x = (update.T if tall else update) / update.norm()
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    x = x.T if tall else x
    rate = train.learning_rate
    return weight * (1 - rate * train.weight_decay) - rate * 0.2 * math.sqrt(max(weight.shape)) * x, mean


@pytest.mark.parametrize("shape", [(24, 8), (8, 24), (16, 16)])
def test_muon_takes_the_steps_of_its_papers(shape: tuple[int, int]) -> None:
    torch.manual_seed(1)
    layer = nn.Linear(shape[1], shape[0], bias=False)
    optimizer = make_optimizer(layer, MUON)
    expected, mean = layer.weight.detach().clone(), torch.zeros(shape)
    for _ in range(3):
        gradient = torch.randn(shape)
        expected, mean = muon_step(expected, gradient, mean, MUON)
        layer.weight.grad = gradient.clone()
        optimizer.step()
        moved = MUON.learning_rate * 0.2  # size of an entry of the step; bfloat16 keeps about two digits of it
        torch.testing.assert_close(layer.weight.detach(), expected, rtol=0, atol=0.1 * moved)


def test_muon_over_many_matrices_takes_the_steps_of_torch() -> None:
    torch.manual_seed(2)
    shapes = [(24, 8), (8, 24), (16, 16), (24, 8), (8, 8)]
    ours, theirs = ([torch.randn(shape).requires_grad_() for shape in shapes] for _ in range(2))
    optimizers = (
        Muon(ours, lr=0.01, weight_decay=0.5, momentum=0.9),
        torch.optim.Muon(theirs, lr=0.01, weight_decay=0.5, momentum=0.9, adjust_lr_fn="match_rms_adamw"),
    )
    for one, other in zip(ours, theirs, strict=True):
        other.data.copy_(one.data)
    for step in range(4):
        for place, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            one.grad = None if place == step else torch.randn(one.shape)  # a frozen or unused matrix stays as it is
            other.grad = None if one.grad is None else one.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=5e-4 * (step + 1))  # torch keeps two digits of 2e-3
    for one, other in zip(ours, theirs, strict=True):
        kept = (
            optimizer.state[matrix]["momentum_buffer"]
            for optimizer, matrix in zip(optimizers, (one, other), strict=True)
        )
        torch.testing.assert_close(*kept, rtol=1e-6, atol=1e-7)


def test_orthogonalised_matrices_have_singular_values_near_one() -> None:
    matrices = torch.randn(3, 12, 40, generator=torch.Generator().manual_seed(3)) * torch.tensor([1e-3, 1.0, 1e3]).view(
        3, 1, 1
    )
    values = torch.linalg.svdvals(orthogonalised(matrices).float())
    assert values.min() > 0.6
    assert values.max() < 1.3


def test_a_step_of_muon_is_as_large_as_one_of_adamw_whatever_the_shape() -> None:
    for shape in ((64, 256), (256, 64), (128, 128)):
        layer = nn.Linear(shape[1], shape[0], bias=False)
        optimizer = make_optimizer(layer, MUON.model_copy(update={"weight_decay": 0.0}))
        before = layer.weight.detach().clone()
        layer.weight.grad = torch.randn(shape)
        optimizer.step()
        size = (layer.weight.detach() - before).square().mean().sqrt().item()
        assert size == pytest.approx(0.2 * 0.01, rel=0.25)  # its singular values lie around 1, not at 1


def test_muon_takes_the_hidden_matrices_and_adamw_the_rest_with_its_own_decay() -> None:
    for family in ("linear", "mlp", "transformer"):
        config = RunConfig.build("tiny", [f"heads.family={family}", "heads.count=2"])
        model = ByteLM(config.model, config.heads)
        muon, adamw = make_optimizer(model, MUON).parts
        assert isinstance(muon, Muon)
        assert isinstance(adamw, torch.optim.AdamW)
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        hidden = {names[id(parameter)] for parameter in muon.param_groups[0]["params"]}
        unembeddings, others = ({names[id(p)] for p in group["params"]} for group in adamw.param_groups)
        assert unembeddings == {"heads.unembedding.weight"}
        assert {name.rpartition(".")[2] for name in others} == {"embedding", "gain", "query_key_gain"}
        assert hidden | unembeddings | others == set(names.values())
        assert [group["weight_decay"] for group in (*muon.param_groups, *adamw.param_groups)] == [0.5, 0.5, 0.0]


def test_under_muon_the_rest_moves_as_it_does_under_adamw_alone() -> None:
    models = [small_model(), small_model()]
    for model, train in zip(models, (TRAIN, MUON), strict=True):
        step(model, make_optimizer(model, train), 0)
    left, right = (dict(model.named_parameters()) for model in models)
    assert {name for name in left if not torch.equal(left[name], right[name])} == {"2.weight"}


@pytest.mark.parametrize(("before", "now"), [(TRAIN, MUON), (MUON, TRAIN)])
def test_state_of_another_optimizer_is_refused(before: TrainConfig, now: TrainConfig) -> None:
    model = small_model()
    optimizer = make_optimizer(model, before)
    step(model, optimizer, 0)
    tensors = optimizer_tensors(optimizer, model)
    with pytest.raises(CheckpointError, match=r"2\.weight.*resume with the train\.optimizer"):
        load_optimizer_tensors(make_optimizer(model, now), model, tensors)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_model_learns_with_each_optimizer(kind: Literal["adamw", "muon"]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(16, 8), nn.Linear(8, 32), nn.SiLU(), nn.Linear(32, 16))
    optimizer = make_optimizer(model, TrainConfig(optimizer=kind, learning_rate=0.03, weight_decay=0.0))
    ids = torch.arange(16)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(ids), ids.roll(1)).backward()
        optimizer.step()
    assert nn.functional.cross_entropy(model(ids), ids.roll(1)) < 0.1
