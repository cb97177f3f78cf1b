"""What the registry offers, and plugins that are registered in process."""

from dataclasses import dataclass
from types import ModuleType, SimpleNamespace

import pytest

from fxopt.cost import find_target
from fxopt.errors import BackendError, InputError, PluginError
from fxopt.plugin import Backend, BackendInfo, Exact, Fact, Pass, PassInfo, hookimpl
from fxopt.registry import Registry

CPU = find_target("cpu")


def make_pass_class(name, **declared):
    @dataclass(frozen=True)
    class Nothing(Pass):
        info = PassInfo(name=name, stage="simplify", fidelity=Exact(), **declared)

        def run(self, program, context):
            raise NotImplementedError

    return Nothing


def make_backend_class(name, *, targets=("cpu",), lacks=None, extra=""):
    @dataclass(frozen=True)
    class Idle(Backend):
        info = BackendInfo(name=name, targets=targets, extra=extra)

        def unavailable(self):
            if isinstance(lacks, Exception):
                raise lacks
            return lacks

        def lower(self, program, inputs, target):
            raise NotImplementedError

    return Idle


def plugin(passes=(), backends=(), facts=()):
    class Plugin:
        @hookimpl
        def fxopt_passes(self):
            return passes

        @hookimpl
        def fxopt_backends(self):
            return backends

        @hookimpl
        def fxopt_facts(self):
            return facts

    return Plugin()


@pytest.fixture
def registry():
    return Registry()


def test_registering_an_object_or_a_module(registry):
    tidy = Fact("tidy", "all is tidy", lambda program: [])
    one = make_pass_class("one", provides=("tidy",))
    found = registry.register(plugin([one], [make_backend_class("idle")], [tidy]), "notebook")
    module = ModuleType("a_module")
    module.fxopt_passes = hookimpl(lambda: [make_pass_class("two", provides=("tidy",))])
    registry.register(module, "second")
    assert set(registry.passes) == {"one", "two"}
    assert set(registry.backends) == {"idle"}
    assert registry.facts == {"tidy": tidy}
    assert found.passes == (one,)
    assert [p.name for p in registry.plugins] == ["notebook", "second"]
    assert registry.owner("backend", "idle") == "plugin notebook (registered in this process)"
    assert registry.providers("tidy") == ("one", "two")
    assert registry.providers("another") == ()
    assert registry.parse("two,one") == [registry.passes["two"](), one()]


def test_what_it_offers_cannot_be_changed_from_outside(registry):
    with pytest.raises(TypeError):
        registry.passes["mine"] = make_pass_class("mine")


def test_owner_of_an_unknown_name(registry):
    with pytest.raises(PluginError, match="no plugin brings a fact named 'tidy'"):
        registry.owner("fact", "tidy")


def test_a_broken_plugin_cannot_be_registered(registry):
    with pytest.raises(PluginError, match="offers 3"):
        registry.register(plugin([3]), "bad")
    with pytest.raises(PluginError, match="neither passes"):
        registry.register(SimpleNamespace(), "empty")
    assert not registry.plugins


@pytest.mark.parametrize(
    ("second", "kind"),
    [
        (plugin([make_pass_class("same")]), "pass"),
        (plugin(backends=[make_backend_class("same")]), "backend"),
        (plugin(facts=[Fact("same", "", lambda program: [])]), "fact"),
    ],
)
def test_a_taken_name_cannot_be_registered(registry, second, kind):
    fact = Fact("same", "", lambda program: [])
    first = plugin([make_pass_class("same")], [make_backend_class("same")], [fact])
    registry.register(first, "first")
    with pytest.raises(PluginError, match=f"a {kind} named 'same'") as caught:
        registry.register(second, "second")
    assert "plugin first" in str(caught.value)
    assert "plugin second" in str(caught.value)
    assert [p.name for p in registry.plugins] == ["first"]
    registry.check()


# -- backends --------------------------------------------------------------------------------


@pytest.fixture
def backends(registry):
    registry.register(
        plugin(
            backends=[
                make_backend_class("plain"),
                make_backend_class("another"),
                make_backend_class("gpu", targets=("cuda",)),
                make_backend_class("absent", lacks="no runtime", extra="pip install absent"),
                make_backend_class("raising", lacks=OSError("no driver")),
            ]
        ),
        "all",
    )
    return registry


def test_usable_backends_and_the_reasons_of_the_others(backends):
    usable, others = backends.available_backends(CPU)
    assert [backend.info.name for backend in usable] == ["another", "plain"]
    reasons = dict(others)
    assert set(reasons) == {"absent", "gpu", "raising"}
    assert reasons["absent"] == "no runtime"
    assert "lowers to cuda, not to cpu" in reasons["gpu"]
    assert "OSError: no driver" in reasons["raising"]


def test_named_backends_come_in_their_order(backends):
    usable, others = backends.available_backends(CPU, ["plain", "another", "plain"])
    assert [backend.info.name for backend in usable] == ["plain", "another"]
    assert not others


@pytest.mark.parametrize(
    ("name", "says", "hint"),
    [
        ("absent", "no runtime", "pip install absent"),
        ("gpu", "lowers to cuda", None),
        ("raising", "OSError: no driver", None),
    ],
)
def test_a_named_backend_has_to_be_usable(backends, name, says, hint):
    with pytest.raises(BackendError, match=says) as caught:
        backends.available_backends(CPU, ["plain", name])
    assert name in caught.value.what
    assert caught.value.hint == hint


def test_an_unknown_backend(backends):
    with pytest.raises(InputError, match="unknown backend 'plian'") as caught:
        backends.available_backends(CPU, ["plian"])
    assert caught.value.hint == "did you mean 'plain'?"
    with pytest.raises(InputError) as caught:
        backends.available_backends(CPU, ["zebra"])
    assert "absent, another, gpu, plain, raising" in caught.value.hint


@pytest.mark.parametrize("nothing", [[], "plain"])
def test_names_have_to_be_a_list_with_something_in_it(backends, nothing):
    with pytest.raises(InputError, match="names no backends") as caught:
        backends.available_backends(CPU, nothing)
    assert "backends=[" in caught.value.hint
