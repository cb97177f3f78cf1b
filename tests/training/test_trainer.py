"""The trainer: what it changes, where it goes on after it was cut short, and what it refuses."""

import time
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fxopt.errors import InputError
from fxopt.frontend import capture_program
from fxopt.training import Trainer, Training, loop


class Net(nn.Module):
    """With dropout and batch norm, whose states a resumed training has to find again."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Linear(6, 16), nn.BatchNorm1d(16)
        self.drop, self.last = nn.Dropout(0.3), nn.Linear(16, 3)

    def forward(self, x):
        return self.last(self.drop(self.norm(self.first(x)).relu()))


def examples(count=60):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, 6, generator=generator)
    return TensorDataset(x, (x @ torch.randn(6, 3, generator=generator)).argmax(1))


def shuffled():
    return DataLoader(examples(), batch_size=6, shuffle=True)


def program_of(model=None):
    torch.manual_seed(0)
    return capture_program((model or Net()).eval(), (torch.randn(4, 6),), {}).clone()


def weights(program):
    return {name: tensor.clone() for name, tensor in program.module.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_losses_are_of_batches_where_the_program_is():
    program = program_of()
    program.module.to("meta")
    losses = list(Trainer(Training(shuffled())).losses(program))
    assert [loss.device.type for loss in losses] == ["meta"] * 10


def test_training_lowers_the_loss_and_leaves_modes_as_they_were():
    program = program_of()
    before = weights(program)
    trained = Trainer(Training(shuffled(), epochs=8, learning_rate=1e-2)).train(program)
    assert trained.epochs == len(trained.losses) == 8
    assert trained.losses[-1] < 0.7 * trained.losses[0]
    assert not any(torch.equal(before[name], after) for name, after in weights(program).items())
    assert not any(module.training for module in program.module.modules())
    assert all(parameter.grad is None for parameter in program.module.parameters())


def test_the_same_seed_gives_the_same_weights():
    found = []
    for seed in (0, 0, 1):
        program = program_of()
        Trainer(Training(shuffled(), epochs=1), seed=seed).train(program)
        found.append(weights(program))
    assert same(found[0], found[1])
    assert not same(found[0], found[2])


def test_frozen_parameters_stay_as_they_are():
    model = Net()
    model.first.requires_grad_(False)
    program = program_of(model)
    before = weights(program)
    Trainer(Training(shuffled(), epochs=1)).train(program)
    kept = {name for name, after in weights(program).items() if torch.equal(before[name], after)}
    assert kept == {"first.weight", "first.bias"}
    assert not program.module.get_parameter("first.weight").requires_grad


def test_a_model_that_is_frozen_whole_is_trained_whole():
    program = program_of(Net().requires_grad_(False))
    before = weights(program)
    Trainer(Training(shuffled(), epochs=1)).train(program)
    assert not any(torch.equal(before[name], after) for name, after in weights(program).items())
    assert not any(parameter.requires_grad for parameter in program.module.parameters())


class Cut:
    """Data whose walk is cut short once, before a certain batch."""

    def __init__(self, data, at, error=KeyboardInterrupt):
        # the first batch is looked at twice before, to tell the data from others
        self.data, self.left, self.error = data, at + 2, error

    def __len__(self):
        return len(self.data)

    def __iter__(self):
        for batch in self.data:
            if self.left == 0:
                self.left = -1
                raise self.error
            self.left -= 1
            yield batch


SETTINGS = {
    "sgd": {"optimizer": "sgd", "schedule": "linear", "weight_decay": 1e-3},
    "adamw": {"optimizer": "adamw", "clip": 0.5, "precision": "bf16"},
    "own": {
        "optimizer": lambda groups: torch.optim.RAdam(groups, lr=1e-3),
        "schedule": lambda optimizer, steps: torch.optim.lr_scheduler.StepLR(optimizer, 7),
    },
    "judged": {"validation": list(DataLoader(examples(20), batch_size=10)), "patience": 2},
}


@pytest.mark.parametrize("at", [1, 10, 17, 29])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_a_training_that_was_cut_short_ends_with_the_same_weights(settings, at, tmp_path):
    whole = program_of()
    expected = Trainer(Training(shuffled(), epochs=3, **settings)).train(whole)

    cut = Training(Cut(shuffled(), at), epochs=3, checkpoint_seconds=0, **settings)
    with pytest.raises(KeyboardInterrupt):
        Trainer(cut, folder=tmp_path).train(program_of())
    lines = []
    resumed = program_of()
    again = Trainer(
        Training(shuffled(), epochs=3, checkpoint_seconds=0, **settings),
        folder=tmp_path,
        progress=lines.append,
    ).train(resumed)
    assert any(f"goes on after {at // 10} epochs and {at % 10} batches" in line for line in lines)
    assert same(weights(resumed), weights(whole))
    assert again.losses == expected.losses


def test_a_finished_training_is_not_done_again(tmp_path):
    settings = Training(shuffled(), epochs=2)
    first, second = program_of(), program_of()
    Trainer(settings, folder=tmp_path).train(first)
    trained = Trainer(settings, folder=tmp_path).train(second)
    assert same(weights(first), weights(second))
    assert trained.seconds < 5
    assert trained.epochs == 2


@pytest.mark.parametrize("other", ["weights", "settings", "seed", "key", "truncated", "foreign"])
def test_checkpoints_of_anything_else_are_left_alone(other, tmp_path):
    Trainer(Training(shuffled(), epochs=1), folder=tmp_path).train(program_of())
    (path,), program = tmp_path.glob("training-*.pt"), program_of()
    settings, seed = Training(shuffled(), epochs=2 if other == "settings" else 1), 0
    if other == "weights":
        torch.nn.init.ones_(program.module.get_parameter("first.weight"))
    elif other == "seed":
        seed = 1
    elif other == "truncated":
        path.write_bytes(path.read_bytes()[:-1000])
    elif other == "foreign":
        path.write_bytes(b"no checkpoint")
    expected = program.clone()
    # the objective of a pass is known by its key
    key = "another" if other == "key" else ""
    objective = (lambda outputs, inputs, target: outputs[0].square().mean()) if key else None
    Trainer(settings, seed=seed).train(expected, objective=objective, key=key)
    Trainer(settings, seed=seed, folder=tmp_path).train(program, objective=objective, key=key)
    assert same(weights(program), weights(expected))


class Malicious:
    def __reduce__(self):
        return (pytest.fail, ("a checkpoint was executed",))


def test_checkpoints_are_not_executed(tmp_path):
    trainer = Trainer(Training(shuffled(), epochs=1), folder=tmp_path)
    trainer.train(program_of())
    (path,) = tmp_path.iterdir()
    torch.save({"position": Malicious()}, path)
    assert trainer.train(program_of()).epochs == 1


def test_time_is_kept_and_what_was_found_too(tmp_path):
    program = program_of()
    trainer = Trainer(Training(shuffled()), folder=tmp_path, deadline=time.monotonic() - 1)
    trained = trainer.train(program)
    assert trained.stopped == "time limit"
    assert trained.epochs == 0
    assert len(list(tmp_path.iterdir())) == 1


class Augmented(torch.utils.data.Dataset):
    """Examples with noise that is drawn as they are loaded."""

    def __len__(self):
        return 60

    def __getitem__(self, index):
        x, y = examples()[index]
        return x + torch.randn(6), y


@pytest.mark.parametrize("at", [1, 4, 10, 17, 20])
def test_a_training_that_was_out_of_time_ends_with_the_same_weights(at, tmp_path, monkeypatch):
    settings = Training(DataLoader(Augmented(), batch_size=6, shuffle=True), epochs=2)
    whole, resumed = program_of(), program_of()
    expected = Trainer(settings).train(whole)
    steps = []
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: len(steps)))
    cut = Trainer(settings, folder=tmp_path, deadline=at - 0.5).train(
        program_of(), after_step=lambda: steps.append(1)
    )
    assert len(steps) == at
    assert (cut.epochs, cut.stopped) == (at // 10, "time limit" if at < 20 else "")
    too_late = Trainer(settings, folder=tmp_path, deadline=0.5).train(program_of())
    assert too_late.stopped == cut.stopped
    again = Trainer(settings, folder=tmp_path).train(resumed)
    assert same(weights(resumed), weights(whole))
    assert again.losses == expected.losses


def test_the_best_epoch_is_kept_and_patience_ends():
    validation = list(DataLoader(examples(20), batch_size=10))
    program = program_of()
    settings = Training(
        shuffled(), epochs=50, learning_rate=1.0, optimizer="sgd", schedule="constant",
        validation=validation, patience=2,
    )  # fmt: skip
    seen = []

    def objective(outputs, inputs, target):
        loss = nn.functional.cross_entropy(outputs[0], target)
        if not torch.is_grad_enabled():
            seen.append(float(loss))
        return loss

    trained = Trainer(settings).train(program, objective=objective)
    assert trained.stopped == "no lower loss in 2 epochs"
    epochs = [sum(pair) / 2 for pair in zip(seen[::2], seen[1::2], strict=True)]
    assert epochs.index(min(epochs)) == len(epochs) - 3
    with torch.no_grad():
        losses = [nn.functional.cross_entropy(program(x)[0], y) for x, y in validation]
    assert float(sum(losses) / 2) == pytest.approx(min(epochs), rel=1e-5)


def test_data_without_labels_need_an_objective():
    inputs = [x for x, _ in DataLoader(examples(), batch_size=6)]
    program = program_of()
    with pytest.raises(InputError, match="no loss to train with"):
        Trainer(Training(inputs, loss=None)).train(program)
    trained = Trainer(Training(inputs, loss=None, epochs=1)).train(
        program, objective=lambda outputs, flat, target: outputs[0].square().mean()
    )
    assert trained.epochs == 1


def test_modules_may_stay_in_evaluation_mode():
    program = program_of()
    norm = program.module.get_submodule("norm")
    before = weights(program)
    settings = Training(shuffled(), epochs=2, validation=shuffled())
    Trainer(settings).train(program, evaluating=[norm])
    after = weights(program)
    kept = {name for name in before if torch.equal(before[name], after[name])}
    assert kept == {"norm.running_mean", "norm.running_var", "norm.num_batches_tracked"}


def test_a_step_may_be_followed_by_a_constraint():
    program = program_of()
    weight = program.module.get_parameter("first.weight")
    mask = torch.rand_like(weight) > 0.5

    def masked():
        with torch.no_grad():
            weight.mul_(mask)

    Trainer(Training(shuffled(), epochs=1)).train(program, after_step=masked)
    assert torch.equal(weight != 0, mask)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"data": iter([])}, "walked once"),
        ({"data": 3}, "not an iterable"),
        ({"loss": "crossentropy"}, "cross_entropy, mse"),
        ({"optimizer": "lion"}, "sgd, adam, adamw"),
        ({"schedule": "step"}, "cosine, linear, constant"),
        ({"precision": "int8"}, "neither f32 nor bf16"),
        ({"epochs": -1}, "epochs=-1"),
        ({"epochs": 1.5}, "epochs=1.5"),
        ({"patience": 0}, "patience=0"),
        ({"learning_rate": -1.0}, "learning_rate=-1.0"),
        ({"warmup": 1.0}, "warmup=1.0"),
        ({"optimizer": torch.optim.RAdam, "learning_rate": 0.1}, "learning_rate=0.1 has no effect"),
        ({"optimizer": torch.optim.RAdam, "weight_decay": 0.1}, "weight_decay=0.1 has no effect"),
        ({"optimizer": torch.optim.RAdam, "momentum": 0.5}, "momentum=0.5 has no effect"),
        ({"schedule": lambda optimizer, steps: None, "warmup": 0.1}, "warmup=0.1 has no effect"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, text):
    with pytest.raises(InputError, match=text):
        Training(**{"data": [], **settings})


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ([], "no batch"),
        ([torch.randn(4, 6)], "not a pair of inputs and target"),
        ([(torch.randn(4, 6), torch.zeros(4).long(), 1)], "a tuple of 3"),
        ([("x", torch.zeros(4).long())], "the inputs of a batch are a str"),
        ([((torch.randn(4, 6), 1), torch.zeros(4).long())], "another structure"),
        ([(torch.full((4, 6), torch.nan), torch.zeros(4).long())], "lower learning_rate"),
    ],
    ids=["none", "unlabelled", "triple", "text", "structure", "nan"],
)
def test_data_that_cannot_be_used_are_refused(data, text):
    with pytest.raises(InputError, match=text):
        Trainer(Training(data)).train(program_of())


def test_a_model_without_parameters_is_refused():
    program = program_of(nn.ReLU())
    with pytest.raises(InputError, match="no parameters"):
        Trainer(Training([(torch.randn(4, 6), torch.zeros(4).long())])).train(program)
