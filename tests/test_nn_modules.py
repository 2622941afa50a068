"""The modules and functions are torch's own in all but speed; patch_torch puts them in the place of torch's."""

from __future__ import annotations

import copy
import inspect
import pickle
import threading
from typing import Any

import pytest
import torch
from torch.nn import functional as torch_functional

from fastloss import nn
from fastloss.nn import functional

MODULES: list[tuple[str, dict[str, Any]]] = [
    ("BCELoss", {"weight": torch.tensor([0.5, 2.0])}),
    ("BCEWithLogitsLoss", {"weight": torch.tensor([0.5, 2.0]), "pos_weight": torch.tensor([3.0, 1.0])}),
    ("CrossEntropyLoss", {"weight": torch.tensor([0.5, 2.0]), "ignore_index": 1, "label_smoothing": 0.1}),
    ("KLDivLoss", {"reduction": "batchmean", "log_target": True}),
    ("LogSigmoid", {}),
    ("LogSoftmax", {"dim": 1}),
    ("MSELoss", {"reduction": "sum"}),
    ("NLLLoss", {"weight": torch.tensor([0.5, 2.0]), "ignore_index": 1}),
    ("Sigmoid", {}),
    ("Softmax", {"dim": 1}),
]
modules = pytest.mark.parametrize(("name", "options"), MODULES, ids=[name for name, _ in MODULES])


pytestmark = pytest.mark.usefixtures("no_fallback")


def arguments_of(name: str) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    input = 0.8 * torch.rand(4, 2, generator=generator) + 0.1
    if name in ("CrossEntropyLoss", "NLLLoss"):
        return input, torch.randint(2, (4,), generator=generator)
    if name.endswith("Loss"):
        return input, torch.rand(4, 2, generator=generator)
    return (input,)


@pytest.mark.parametrize("name", functional.__all__)
def test_functions_have_torchs_signatures(name: str) -> None:
    ours = getattr(functional, name)
    try:
        theirs = inspect.signature(getattr(torch_functional, name))
    except ValueError:  # logsigmoid is built in, without a signature
        assert list(inspect.signature(ours).parameters) == ["input"]
        return
    for own, expected in zip(inspect.signature(ours).parameters.values(), theirs.parameters.values(), strict=True):
        assert (own.name, own.kind, own.default) == (expected.name, expected.kind, expected.default)


def test_all_losses_are_there() -> None:
    assert {name for name, _ in MODULES} == {name for name in nn.__all__ if inspect.isclass(getattr(nn, name))}


@modules
def test_modules_are_torchs(name: str, options: dict[str, Any]) -> None:
    ours, theirs = getattr(nn, name), getattr(torch.nn, name)
    assert inspect.signature(ours) == inspect.signature(theirs)
    module, own = ours(**options), theirs(**options)
    assert isinstance(module, theirs)
    assert repr(module) == repr(own)
    assert module.state_dict().keys() == own.state_dict().keys()
    torch.testing.assert_close(module(*arguments_of(name)), own(*arguments_of(name)))


@modules
def test_modules_are_copied_pickled_and_converted(name: str, options: dict[str, Any]) -> None:
    module = getattr(nn, name)(**options)
    expected = module(*arguments_of(name))
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert type(twin) is type(module)
        assert torch.equal(twin(*arguments_of(name)), expected)
    other = getattr(nn, name)(**{key: 2 * v if isinstance(v, torch.Tensor) else v for key, v in options.items()})
    other.load_state_dict(module.state_dict())
    assert torch.equal(other(*arguments_of(name)), expected)
    assert all(tensor.dtype is torch.float64 for tensor in module.to(torch.float64).state_dict().values())


@modules
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
def test_modules_can_be_scripted(name: str, options: dict[str, Any]) -> None:
    own_class = getattr(nn, name)
    for module in (own_class(**options), type("Derived", (own_class,), {})(**options)):
        scripted = torch.jit.script(module)
        torch.testing.assert_close(scripted(*arguments_of(name)), module(*arguments_of(name)))


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
def test_a_forward_of_a_subclass_is_not_left_out_of_a_script() -> None:
    class Twice(nn.Sigmoid):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return 2 * torch.sigmoid(input)

    x = torch.randn(5)
    torch.testing.assert_close(torch.jit.script(Twice())(x), 2 * torch.sigmoid(x))


@pytest.mark.parametrize("name", ["Softmax", "LogSoftmax"])
@pytest.mark.parametrize("axes", [1, 3])
def test_an_implicit_axis_gets_torchs_warning_at_the_same_place(name: str, axes: int) -> None:
    input, places = torch.rand((2,) * axes), []
    for library, module in ((torch_functional, torch.nn), (functional, nn)):
        with pytest.warns(UserWarning, match="Implicit dimension choice") as caught:
            getattr(library, {"Softmax": "softmax", "LogSoftmax": "log_softmax"}[name])(input)
        assert caught[0].filename == __file__
        with pytest.warns(UserWarning, match="Implicit dimension choice") as caught:
            getattr(module, name)()(input)
        places.append((caught[0].filename, caught[0].lineno))
    assert places[0] == places[1]


def test_patch_replaces_and_restores_the_very_objects() -> None:
    before = dict(vars(torch_functional))
    patch = nn.patch_torch()
    for name in functional.__all__:
        assert getattr(torch_functional, name) is getattr(functional, name)
    patch.restore()
    patch.restore()
    assert dict(vars(torch_functional)) == before
    with nn.patch_torch():
        assert torch_functional.cross_entropy is functional.cross_entropy
        with nn.patch_torch():
            pass
        assert torch_functional.cross_entropy is functional.cross_entropy
    assert dict(vars(torch_functional)) == before
    first, second = nn.patch_torch(), nn.patch_torch()
    first.restore()
    assert torch_functional.cross_entropy is functional.cross_entropy
    second.restore()
    assert dict(vars(torch_functional)) == before


def test_patch_is_undone_by_an_error() -> None:
    before = torch_functional.cross_entropy
    with pytest.raises(ZeroDivisionError), nn.patch_torch():
        raise ZeroDivisionError
    assert torch_functional.cross_entropy is before


def test_patch_in_many_threads() -> None:
    before = dict(vars(torch_functional))

    def work() -> None:
        for _ in range(200):
            with nn.patch_torch():
                assert torch_functional.mse_loss is functional.mse_loss

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert dict(vars(torch_functional)) == before


def test_patch_serves_torchs_own_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    serve = functional._class_loss
    monkeypatch.setattr(functional, "_class_loss", lambda name, *rest: calls.append(name) or serve(name, *rest))
    input, target = torch.randn(4, 3), torch.randint(3, (4,))
    expected = torch.nn.CrossEntropyLoss()(input, target)
    with nn.patch_torch():
        torch.testing.assert_close(torch.nn.CrossEntropyLoss()(input, target), expected)
    assert calls == ["cross_entropy"]


def test_patch_leaves_subclasses_and_fallbacks_working(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's functions look themselves up in the module that is patched when they meet a subclass."""

    class Subclass(torch.Tensor):
        pass

    input, target = torch.randn(4, 3), torch.randint(3, (4,))
    expected = torch_functional.cross_entropy(input, target)
    monkeypatch.setenv("FASTLOSS_MIN_SIZE", "1000000")
    with nn.patch_torch():
        torch.testing.assert_close(torch_functional.cross_entropy(input, target), expected)
        of_subclass = torch_functional.cross_entropy(input.as_subclass(Subclass), target)
    assert isinstance(of_subclass, Subclass)
    torch.testing.assert_close(of_subclass.as_subclass(torch.Tensor), expected)
