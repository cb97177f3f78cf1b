import subprocess

import pytest
import torch
from torch import nn

from fxopt.cli.model import load_model
from fxopt.errors import InputError


def test_a_class_in_a_file(models):
    model = load_model(f"{models}:Net")
    assert type(model).__name__ == "Net"
    assert not model.training


def test_a_class_in_a_package():
    assert isinstance(load_model("torch.nn:Flatten"), nn.Flatten)


def test_zoos():
    assert type(load_model("torchvision:squeezenet1_1")).__name__ == "SqueezeNet"
    assert load_model("timm:test_vit").pretrained_cfg["input_size"] == (3, 160, 160)


def test_a_detection_model_downloads_nothing():
    assert type(load_model("torchvision:ssdlite320_mobilenet_v3_large")).__name__ == "SSD"


def test_weights_from_a_file(models, tmp_path):
    other = load_model(f"{models}:Net")
    torch.save(other.state_dict(), tmp_path / "w.pt")
    model = load_model(f"{models}:Net", str(tmp_path / "w.pt"))
    assert torch.equal(model.fc.weight, other.fc.weight)


def test_pickled_code_is_not_run(models, tmp_path):
    class Evil:
        def __reduce__(self):
            return subprocess.run, (["touch", str(tmp_path / "owned")],)

    torch.save({"fc.weight": Evil()}, tmp_path / "w.pt")
    with pytest.raises(InputError, match="do not fit"):
        load_model(f"{models}:Net", str(tmp_path / "w.pt"))
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("resnet18", "write path/to/file.py:name"),
        ("torchvision:resnet81", "did you mean resnet18"),
        ("timm:nothing_like_it_0", "timm has no model"),
        ("no_such_package:Net", "no module 'no_such_package'"),
        ("no_such_file.py:Net", "no file no_such_file.py"),
        ("{models}:Nett", "has no 'Nett'.*\n.*Net"),
        ("{models}:number", "is a int, not a torch.nn.Module"),
        ("{models}:loader", "is a list, not a torch.nn.Module"),
        ("builtins:dict", "is a dict, not a torch.nn.Module"),
    ],
)
def test_what_cannot_be_found_is_an_error_of_ours(models, text, message):
    with pytest.raises(InputError, match=message):
        load_model(text.format(models=models))


def test_weights_that_do_not_fit(models, tmp_path):
    torch.save({"fc.weight": torch.ones(1)}, tmp_path / "w.pt")
    with pytest.raises(InputError, match="do not fit"):
        load_model(f"{models}:Net", str(tmp_path / "w.pt"))
    with pytest.raises(InputError, match="no default weights"):
        load_model(f"{models}:Net", "DEFAULT")


def test_an_error_in_the_users_file_is_the_users(tmp_path):
    path = tmp_path / "broken.py"
    path.write_text("import no_such_module_of_mine\n")
    with pytest.raises(ModuleNotFoundError, match="no_such_module_of_mine"):
        load_model(f"{path}:Net")
