"""finetune and distill: what they train towards, what they keep, and what they refuse."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import fxopt
from fxopt.cost import find_target
from fxopt.errors import InputError, PassError
from fxopt.frontend import capture_program
from fxopt.passes import Context
from fxopt.training import Trainer, Training
from fxopt_prune import Prune
from fxopt_recover import Distill, Finetune
from fxopt_recover.distances import relative_square
from fxopt_recover.hints import Hints
from fxopt_recover.layers import choose_layers
from fxopt_recover.objective import Imitation
from fxopt_recover.scores import choose

CPU = find_target("cpu")
X = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(64) % 4


def net(width=16):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
        nn.Conv2d(width, width, 3, stride=2, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 4),
    )  # fmt: skip
    with torch.no_grad():
        model[-1].weight.mul_(20)  # as sure of its answers as a trained one
        for _ in range(30):
            model(X)  # batch norms find their statistics
    return model.eval()


def program_of(model):
    return capture_program(model, (X[:4],), {}).clone()


def batches(labelled):
    pairs = list(zip(X.split(16), LABELS.split(16), strict=True))
    return pairs if labelled else [x for x, _ in pairs]


def context(program, labelled=False, **settings):
    given = {"learning_rate": 3e-2, "epochs": 8, **settings}
    training = Training(batches(labelled), loss="cross_entropy" if labelled else None, **given)
    return Context(CPU, training=Trainer(training), original=program)


def outputs(program):
    with torch.no_grad():
        return program(X)[0]


def halved(program):
    student = program.clone()
    Prune(ratio=0.5, round_to=1, reconstruct=False).run(student, Context(CPU))
    return student


# -- finetune --------------------------------------------------------------------------------


def test_finetuning_lowers_the_loss_and_keeps_zeros():
    program = program_of(net())
    (first, *_) = program.find(nn.Conv2d)
    weight = program.leaf(first).weight
    zeros = torch.rand(weight.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    with torch.no_grad():
        weight[zeros] = 0
    result = Finetune().run(program, context(program, labelled=True))
    assert result.changed
    assert result.details["losses"][-1] < result.details["losses"][0]
    trained = program.leaf(first).weight
    assert not trained[zeros].any()
    assert trained[~zeros].all()


@pytest.mark.parametrize("item", [Finetune(), Distill()], ids=lambda item: item.info.name)
def test_a_forbidden_rewrite_trains_nothing(item):
    program = program_of(net())
    before, program.rewrite_limit = program.fingerprint(), 0
    result = item.run(program, context(program, labelled=True))
    assert not result.changed
    assert program.fingerprint() == before


def test_zeros_can_be_given_up():
    program = program_of(net())
    (first, *_) = program.find(nn.Conv2d)
    with torch.no_grad():
        program.leaf(first).weight[:, 0] = 0
    Finetune(keep_zeros=False).run(program, context(program, labelled=True))
    assert program.leaf(first).weight[:, 0].any()


class FromZeros(nn.Module):
    """A position embedding, a class token and a head that begin with zeros, as many models have."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.token, self.position = (nn.Parameter(torch.zeros(1, n, 8)) for n in (1, 5))
        with torch.no_grad():
            self.position[:, 1] = 1.0
        self.patch, self.head = nn.Linear(48, 8), nn.Linear(8, 4)
        nn.init.zeros_(self.head.weight)

    def forward(self, x):
        tokens = self.patch(x.flatten(1).unflatten(1, (4, 48)))
        tokens = torch.cat([self.token.expand(x.shape[0], -1, -1), tokens], 1) + self.position
        return self.head(nn.functional.gelu(tokens).mean(1))


@pytest.mark.parametrize("item", [Finetune(), Distill()], ids=lambda item: item.info.name)
def test_what_begins_with_zeros_learns(item):
    student = program_of(FromZeros())
    item.run(student, replace(context(student, True), original=program_of(net())))
    for name in ("head.weight", "position", "token"):
        assert student.module.get_parameter(name).all(), name


def test_finetuning_needs_labels():
    program = program_of(net())
    with pytest.raises(PassError, match="needs labels"):
        Finetune().run(program, context(program))


# -- distill ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hints", "labelled"), [("off", False), ("attention", True), ("features", False)]
)
def test_a_pruned_student_comes_nearer_to_its_teacher(hints, labelled):
    teacher = program_of(net())
    before, wanted = teacher.fingerprint(), outputs(teacher)
    student = halved(teacher)
    start = float(relative_square(outputs(student), wanted))
    item = Distill(hints=hints, match="outputs", weight=0.99)
    result = item.run(student, context(teacher, labelled))
    assert float(relative_square(outputs(student), wanted)) < 0.5 * start
    assert teacher.fingerprint() == before
    assert ("hints" in result.summary) == (hints != "off")
    leaves = [student.leaf(node) for node in student.nodes if node.op == "call_module"]
    assert not any(leaf._forward_hooks for leaf in leaves)


def test_frozen_parameters_stay_as_the_student_learns():
    model = net()
    model[0].requires_grad_(False)
    teacher = program_of(model)
    student = teacher.clone()
    with torch.no_grad():
        student.module.get_parameter("8.weight").mul_(0.5)
    before = {name: weight.clone() for name, weight in student.module.named_parameters()}
    Distill(hints="attention").run(student, context(teacher))
    after = dict(student.module.named_parameters())
    kept = {name for name, weight in after.items() if torch.equal(weight, before[name])}
    assert kept == {"0.weight", "0.bias"}


@pytest.mark.parametrize("other", ["temperature", "teacher"])
def test_a_checkpoint_of_another_distillation_is_left_alone(other, tmp_path):
    first, second = program_of(net()), program_of(net())
    torch.nn.init.ones_(second.module.get_parameter("8.weight"))
    again = {"temperature": Distill(temperature=1.0), "teacher": Distill()}[other]
    teacher = second if other == "teacher" else first

    def distilled(item, teacher, folder):
        student = halved(first)
        trainer = Trainer(Training([X[:32]], loss=None, epochs=2), folder=folder)
        item.run(student, replace(context(teacher, False), training=trainer))
        return student.fingerprint()

    kept = distilled(Distill(), first, tmp_path)
    assert distilled(Distill(), first, tmp_path) == kept
    assert distilled(again, teacher, tmp_path) == distilled(again, teacher, None) != kept


def objective(teacher, criterion=None, **settings):
    given = {"match": "logits", "temperature": 2.0, "weight": 1.0, "hint_weight": 1.0, **settings}
    hints = given.pop("hints", None) or Hints(teacher, teacher, [], "off")
    return Imitation(teacher, criterion, hints=hints, **given)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_scores_are_compared_as_hinton_does(temperature):
    teacher, student = program_of(net()), program_of(net(8))
    y = student(X)
    found = objective(teacher, temperature=temperature)(y, [X], None)
    p, q = (softmax(z.detach().numpy() / temperature) for z in (outputs(teacher), y[0]))
    wanted = temperature**2 * (p * (np.log(p) - np.log(q))).sum(-1).mean()
    assert float(found.detach()) == pytest.approx(float(wanted), rel=1e-4)


def images():
    """Scores of 5 classes for each pixel: (n, 5, 4, 8)."""
    torch.manual_seed(0)
    return nn.Conv2d(3, 5, 3, stride=(2, 1), padding=1).eval()


def test_classes_of_images_are_behind_the_batch():
    teacher = program_of(images())
    y = torch.randn(64, 5, 4, 8, generator=torch.Generator().manual_seed(2))
    found = objective(teacher, temperature=1.0)([y], [X], None)
    p, q = (softmax(np.moveaxis(z.numpy(), 1, -1)) for z in (outputs(teacher), y))
    wanted = (p * (np.log(p) - np.log(q))).sum(-1).mean()
    assert float(found) == pytest.approx(float(wanted), rel=1e-4)


def numbers(count):
    """A regression of some numbers."""
    return nn.Sequential(nn.Flatten(), nn.Linear(192, count)).eval()


@pytest.mark.parametrize(
    ("model", "loss", "match"),
    [
        (net, None, "logits"),
        (net, nn.functional.cross_entropy, "logits"),
        (net, nn.CrossEntropyLoss(label_smoothing=0.1), "logits"),
        (lambda: numbers(1), None, "outputs"),
        (lambda: numbers(4), nn.functional.mse_loss, "outputs"),
        (lambda: numbers(4), nn.HuberLoss(), "outputs"),
        (lambda: numbers(4), nn.BCEWithLogitsLoss(), "outputs"),
        (images, None, "outputs"),
    ],
)
def test_scores_are_told_from_numbers(model, loss, match):
    assert choose("auto", program_of(model()), loss) == match


def test_a_student_of_one_number_learns():
    teacher = program_of(numbers(1))
    student = teacher.clone()
    with torch.no_grad():
        student.module.get_parameter("1.weight").mul_(0.5)
    start = float(relative_square(outputs(student), outputs(teacher)))
    Distill().run(student, context(teacher))
    assert float(relative_square(outputs(student), outputs(teacher))) < 0.5 * start


def test_one_number_is_no_scores():
    program = program_of(numbers(1))
    with pytest.raises(PassError, match=r"two classes.*shape \(.*, 1\)"):
        Distill(match="logits").run(program, context(program))


def test_labels_count_for_the_rest():
    teacher, student = program_of(net()), program_of(net(8))
    y = student(X)

    def criterion(flat, target):
        return nn.functional.cross_entropy(flat[0], target)

    alone = float(objective(teacher)(y, [X], None))
    labels = float(criterion(y, LABELS))
    found = float(objective(teacher, criterion, weight=0.3)(y, [X], LABELS))
    assert found == pytest.approx(0.3 * alone + 0.7 * labels, rel=1e-5)


@pytest.mark.parametrize("kind", ["attention", "features"])
def test_hints_of_equals_are_zero_and_of_others_are_not(kind):
    teacher = program_of(net())
    for student, least, most in ((teacher.clone(), 0.0, 1e-9), (halved(teacher), 1e-4, 2.0)):
        hints = Hints.between(student, teacher, kind, ())
        with hints:
            student(X), teacher(X)
            assert least <= float(hints.distance()) <= most
        assert len(hints) == 2  # the last layers of images of 8 x 8 and of 4 x 4


def perceptron(width=24):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(192, width), nn.ReLU(), nn.Linear(width, 4)
    ).eval()  # fmt: skip


def test_vectors_within_are_imitated():
    teacher = program_of(perceptron())
    student = program_of(perceptron(8))
    result = Distill(hints="features").run(student, context(teacher))
    assert "1 hints" in result.summary
    names = [name for name, _ in student.module.named_parameters()]
    assert names == ["1.weight", "1.bias", "3.weight", "3.bias"]


def test_fewer_samples_than_channels_do_not_satisfy_a_hint():
    teacher, student = program_of(perceptron()), program_of(perceptron(8))
    hints = Hints.between(student, teacher, "features", (), [[X[:4]]])
    distances = []
    with hints:
        for x in (X[:4], X[4:8]):
            student(x), teacher(x)
            distances.append(float(hints.distance().detach()))
    assert distances[0] < 0.3  # it begins with what fits the examples
    assert distances[1] > 0.3


def test_regressors_learn_with_the_student():
    teacher = program_of(perceptron())
    student = program_of(perceptron(8).requires_grad_(False))  # frozen, so all is trained
    before = student.module.get_parameter("1.weight").clone()
    hints = Hints.between(student, teacher, "features", (), [[X[:4]]])
    start = {name: weight.clone() for name, weight in hints._regressors.named_parameters()}
    with hints:
        student(X), teacher(X)
        away = float(hints.distance().detach())
        context(teacher).training.train(student, objective=objective(teacher, hints=hints))
        student(X), teacher(X)
        assert float(hints.distance()) < 0.75 * away
    learned = dict(hints._regressors.named_parameters())
    assert start.keys() == {"0.weight", "0.bias"}
    assert not any(torch.equal(weight, start[name]) for name, weight in learned.items())
    assert not torch.equal(student.module.get_parameter("1.weight"), before)


class Cut:
    """Batches whose third walk is cut short, after two that look at the first one."""

    def __init__(self):
        self.walks = 0

    def __len__(self):
        return 4

    def __iter__(self):
        self.walks += 1
        yield from X.split(16)[:2]
        if self.walks == 3:
            raise KeyboardInterrupt
        yield from X.split(16)[2:]


def test_regressors_go_on_from_a_checkpoint(tmp_path):
    teacher = program_of(perceptron())

    def distilled(data, folder):
        student = program_of(perceptron(8))
        training = Training(data, loss=None, epochs=2, checkpoint_seconds=0)
        given = replace(
            context(teacher), examples=[[X[:4]]], training=Trainer(training, folder=folder)
        )
        Distill(hints="features").run(student, given)
        return student.fingerprint()

    with pytest.raises(KeyboardInterrupt):
        distilled(Cut(), tmp_path)
    assert distilled(list(X.split(16)), tmp_path) == distilled(list(X.split(16)), None)


def strided(stride):
    model = net()
    model[3].stride = (stride, stride)
    return model


def test_layers_of_other_sizes_are_no_hints():
    student, teacher = program_of(strided(4)), program_of(net())
    assert [layer.name for layer in choose_layers(student, teacher, (), maps=True)] == ["1"]
    message = r"layer '3', which yields \(16, 2, 2\) .* student and \(16, 4, 4\) in the teacher"
    with pytest.raises(PassError, match=message):
        Hints.between(student, teacher, "attention", ("1", "3"))


class Sequences(nn.Module):
    """Channels are along dimension 1 of what Conv1d yields, along the last one of tokens."""

    def __init__(self, width):
        super().__init__()
        self.first, self.tokens = nn.Conv1d(3, width, 1), nn.Linear(width, width)
        self.head = nn.Linear(width, 4)

    def forward(self, x):
        return self.head(self.tokens(self.first(x.flatten(2)).transpose(1, 2)).mean(1))


def test_channels_of_sequences_are_known():
    student, teacher = (program_of(Sequences(width).eval()) for width in (6, 12))
    shared = choose_layers(student, teacher, ("first", "tokens"), maps=False)
    assert [(layer.name, layer.channel) for layer in shared] == [("first", 1), ("tokens", -1)]
    assert all(layer.positions == ("64",) and layer.fits for layer in shared)


@pytest.mark.parametrize(
    ("model", "kind"), [(perceptron, "attention"), (lambda: numbers(4), "features")]
)
def test_hints_that_do_nothing_are_refused(model, kind):
    program = program_of(model())
    with pytest.raises(PassError, match="finds no layers for hints"):
        Distill(hints=kind).run(program, context(program))


def test_layers_of_hints_are_named():
    teacher = program_of(net())
    assert len(Hints.between(teacher.clone(), teacher, "attention", ("3", "1"))) == 2
    with pytest.raises(PassError, match=r"both networks need.* names 'typo'"):
        Hints.between(teacher.clone(), teacher, "attention", ("typo",))


def test_an_original_is_needed():
    program = program_of(net())
    with pytest.raises(PassError, match="needs the original"):
        Distill().run(program, replace(context(program), original=None))


@pytest.mark.parametrize(
    "settings", [{"temperature": 0.0}, {"weight": 1.5}, {"weight": -0.1}, {"hint_weight": -1.0}]
)
def test_settings_are_checked(settings):
    with pytest.raises(ValueError, match="must"):
        Distill(**settings)


def test_the_whole_pipeline_learns_from_the_original():
    model = net()
    passes = "prune{ratio=0.5,round_to=1,reconstruct=false},distill{match=outputs},fold_bn"
    training = Training(batches(labelled=False), loss=None, epochs=8, learning_rate=3e-2)
    fast = fxopt.optimize(
        model, (X[:8],), passes=passes, backends=["eager"], calibration=[X], training=training
    )
    names = {record.name: record for record in fast.report.passes}
    assert list(names) == ["prune", "distill", "fold_bn"]
    distilled = names["distill"]
    assert distilled.status == "applied" or "not faster" in distilled.reason  # it is tiny
    assert names["distill"].drift < names["prune"].drift
    assert model[0].weight.shape[0] == 16


def test_a_smaller_network_learns_from_a_teacher_of_the_users():
    teacher, student = net(24), net(8)
    with torch.no_grad():
        wanted = teacher(X)

    def away(module):
        with torch.no_grad():
            return float(relative_square(module(X), wanted))

    training = Training(
        [X.split(16)[i] for i in range(4)],
        loss=None,
        epochs=20,
        learning_rate=0.01,
        teacher=teacher,
    )
    before = {name: weight.clone() for name, weight in teacher.state_dict().items()}
    fast = fxopt.optimize(
        student, (X[:2],), passes="distill{match=outputs}", training=training, backends=["eager"]
    )
    assert away(fast) < 0.5 * away(student)
    assert all(torch.equal(weight, before[name]) for name, weight in teacher.state_dict().items())


def test_a_teacher_that_nobody_learns_from_is_refused():
    training = Training(batches(True), teacher=net())
    with pytest.raises(InputError, match="no pass learns from the teacher"):
        fxopt.optimize(net(), (X[:2],), passes="finetune", training=training)


def test_the_original_races_unless_distill_was_applied():
    """Here it is refused, so that nobody has learned from the teacher."""
    training = Training(batches(True), epochs=1, teacher=net())
    passes = "finetune,distill{layers=[typo],hints=features}"
    fast = fxopt.optimize(net(), (X[:2],), passes=passes, training=training, backends=["eager"])
    names = {record.name: record for record in fast.report.passes}
    assert names["distill"].status == "rolled back"
    (region,) = fast.report.regions
    assert {candidate.version for candidate in region.candidates} == {"exact", "lossy"}


def test_a_teacher_has_to_fit():
    student = net()
    other = nn.Sequential(*list(student)[:-1], nn.Linear(16, 7)).eval()
    for teacher, message in (
        (other, "the teacher yields"),
        (nn.Flatten(5), "cannot be captured"),
    ):
        training = Training([X], loss=None, teacher=teacher)
        with pytest.raises(InputError, match=message):
            fxopt.optimize(student, (X[:2],), passes="distill", training=training)
    with pytest.raises(InputError, match="not an nn"):
        Training([X], loss=None, teacher=len)
