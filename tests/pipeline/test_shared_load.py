"""What the worker does for each trial, and what once for trials that follow each other."""

import importlib

from fxopt.pipeline.isolation import Isolation
from fxopt.pipeline.isolation.plugins import registry_with
from tests.building import image
from tests.pipeline.bad_backends import Bad
from tests.pipeline.support import TARGET

examine_module = importlib.import_module("fxopt.pipeline.isolation.examine")
worker = importlib.import_module("fxopt.pipeline.isolation.worker")

PLUGIN = "tests.pipeline.bad_backends"


def test_a_program_is_loaded_once_for_trials_in_a_row(candidates, monkeypatch):
    loaded, load = [], examine_module.load_program

    def counted(path, **settings):
        loaded.append(path)
        return load(path, **settings)

    monkeypatch.setattr(examine_module, "load_program", counted)
    right, wrong = candidates(Bad(), Bad("is wrong"))
    registry, kept = registry_with([PLUGIN]), {}
    with Isolation(plugins=(PLUGIN,)) as isolation:
        version = right.version
        with isolation.pack(version.program, [[image(2)]], version.reference[:1]) as parcel:

            def ask(candidate):
                request = isolation._request(parcel, candidate.assignment, TARGET)
                request |= {"tolerance": 1e-4, "which": [0], "timed": False, "keep": candidate.key}
                request |= {"also": [], "within": 0.0}
                return worker._answer(request, registry, lambda what: None, kept)

            answers = [ask(right), ask(wrong)]
            assert [answer["kept"] for answer in answers] == [True, False]
            assert len(loaded) == 1
            turn = isolation._environment(TARGET) | {"turn": right.key, "calls": 1}
            assert worker._answer(turn, registry, lambda what: None, kept)["milliseconds"]
            assert ask(right)["kept"]
            assert len(loaded) == 2
            worker._answer({"forget": [right.key]}, registry, lambda what: None, kept)
            assert kept == {}
