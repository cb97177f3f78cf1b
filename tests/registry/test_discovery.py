"""Plugins are found through entry points; a broken one is reported and skipped."""

import pytest

from fxopt.errors import PluginError, SettingError
from fxopt.registry import default_registry, load_registry

FIRST_PARTY = {
    "cleanup", "eager", "fold_bn", "inductor", "onnxruntime", "openvino", "quantize",
}  # fmt: skip


def test_first_party_plugins_are_found_as_any_other():
    registry = load_registry()
    plugins = {plugin.name: plugin for plugin in registry.plugins}
    assert set(plugins) >= FIRST_PARTY
    assert {plugins[name].distribution for name in FIRST_PARTY} == {"fxopt"}
    assert not [p for p in registry.problems if p.origin.distribution == "fxopt"]
    assert not registry.clashes
    assert {"cleanup", "fold_bn", "quantize"} <= set(registry.passes)
    assert {"eager", "inductor", "onnxruntime", "openvino"} <= set(registry.backends)


def test_the_default_registry_is_loaded_once():
    assert default_registry() is default_registry()


def test_a_plugin_is_found_with_its_package(install, a_pass):
    install("mine", a_pass("mine"), package="my-passes", version="2.5")
    registry = load_registry()
    (plugin,) = [plugin for plugin in registry.plugins if plugin.name == "mine"]
    assert (plugin.distribution, plugin.version) == ("my-passes", "2.5")
    assert [cls.info.name for cls in plugin.passes] == ["mine"]
    assert registry.owner("pass", "mine") == "plugin mine (my-passes 2.5)"


UNFROZEN = """
    @dataclass
    class Bad(Pass):
        info = PassInfo(name="bad", stage="simplify", fidelity=Exact())
        def run(self, program, context): ...
    @hookimpl
    def fxopt_passes(): return [Bad]
"""
INHERITED = """
    @dataclass(frozen=True)
    class Base(Pass):
        info = PassInfo(name="base", stage="simplify", fidelity=Exact())
        def run(self, program, context): ...
    class Bad(Base):
        rank: int = 3
    @hookimpl
    def fxopt_passes(): return [Bad]
"""
WITHOUT_INFO = """
    @dataclass(frozen=True)
    class Bad(Pass):
        def run(self, program, context): ...
    @hookimpl
    def fxopt_passes(): return [Bad]
"""
INFO_AS_SETTING = """
    @dataclass(frozen=True)
    class Bad(Pass):
        info: PassInfo = PassInfo(name="bad", stage="simplify", fidelity=Exact())
        def run(self, program, context): ...
    @hookimpl
    def fxopt_passes(): return [Bad]
"""
WITHOUT_RUN = """
    @dataclass(frozen=True)
    class Bad(Pass):
        info = PassInfo(name="bad", stage="simplify", fidelity=Exact())
    @hookimpl
    def fxopt_passes(): return [Bad]
"""
UNKNOWN_TYPE = """
    @dataclass(frozen=True)
    class Bad(Pass):
        layers: "Missing" = None
        info = PassInfo(name="bad", stage="simplify", fidelity=Exact())
        def run(self, program, context): ...
    @hookimpl
    def fxopt_passes(): return [Bad]
"""
UNKNOWN_STAGE = """
    info = PassInfo(name="bad", stage="simplfy", fidelity=Exact())
"""
BACKEND_WITHOUT_DEFAULT = """
    @dataclass(frozen=True)
    class Bad(Backend):
        device: str
        info = BackendInfo(name="bad", targets=("cpu",))
        def lower(self, program, inputs, target): ...
    @hookimpl
    def fxopt_backends(): return [Bad]
"""

BROKEN = {
    "import error": ("import no_such_runtime", "No module named 'no_such_runtime'"),
    "syntax error": ("def f(:", "SyntaxError"),
    "raises on import": ("raise OSError('no driver')", "OSError: no driver"),
    "raises in a hook": ("@hookimpl\ndef fxopt_passes(): return 1 / 0", "ZeroDivisionError"),
    "wrong signature": ("@hookimpl\ndef fxopt_passes(target): return []", "target"),
    "unknown hook": ("@hookimpl\ndef fxopt_passs(): return []", "unknown hook 'fxopt_passs'"),
    "unmarked hook": ("def fxopt_passes(): return []", "fxopt_passes is not marked as a hook"),
    "no list": ("@hookimpl\ndef fxopt_passes(): return 7", "not iterable"),
    "nothing": ("", "neither passes, nor backends, nor facts"),
    "forgotten return": ("@hookimpl\ndef fxopt_passes(): pass", "neither passes, nor backends"),
    "no class": ("@hookimpl\ndef fxopt_passes(): return ['fold']", "offers 'fold'"),
    "another class": ("@hookimpl\ndef fxopt_passes(): return [dict]", "offers <class 'dict'>"),
    "no fact": ("@hookimpl\ndef fxopt_facts(): return ['narrow']", "offers 'narrow'"),
    "not frozen": (UNFROZEN, "Bad is not a frozen dataclass"),
    "no dataclass of its own": (INHERITED, "Bad is not a frozen dataclass"),
    "no info": (WITHOUT_INFO, "Bad has no class attribute info"),
    "info as a setting": (INFO_AS_SETTING, "Bad declares info as a setting"),
    "no run": (WITHOUT_RUN, "Bad does not define run"),
    "unknown type": (UNKNOWN_TYPE, "the types of the settings of Bad cannot be read"),
    "unknown stage": (UNKNOWN_STAGE, "'simplfy'"),
    "backend without default": (BACKEND_WITHOUT_DEFAULT, "Bad has a field without default"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_plugin_is_reported_and_skipped(case, install, a_pass):
    source, says = BROKEN[case]
    install("broken", source)
    install("good", a_pass("good"))
    registry = load_registry()
    (problem,) = registry.problems
    assert says in problem.error
    assert problem.skipped
    assert problem.hint
    assert (problem.origin.name, problem.origin.distribution) == ("broken", "dist-broken")
    assert "plugin broken (dist-broken 1.0): skipped" in str(problem)
    assert "good" in registry.passes
    assert {plugin.name for plugin in registry.plugins} >= FIRST_PARTY
    assert "broken" not in {plugin.name for plugin in registry.plugins}
    registry.check()


def test_a_problem_tells_the_line_that_raised(install):
    module = install(
        "raising",
        "@hookimpl\ndef fxopt_passes():\n    raise KeyError('x')",
        head="from fxopt.plugin import hookimpl\n",
    )
    (problem,) = load_registry().problems
    assert "fxopt_passes raises KeyError: 'x'" in problem.error
    assert problem.error.endswith(f"{module}.py:4)")


def test_an_unknown_pass_points_at_plugins_that_were_skipped(install):
    install("broken", "import no_such_runtime")
    with pytest.raises(SettingError) as caught:
        load_registry().parse("folt_bn")
    assert "did you mean 'fold_bn'?" in caught.value.hint
    assert "could not be loaded: broken" in caught.value.hint


def test_two_passes_of_one_name_are_an_error_that_names_both(install, a_pass):
    install("one", a_pass("squash"), package="squash-a")
    install("two", a_pass("squash"), package="squash-b")
    registry = load_registry()  # listing still works
    (clash,) = registry.clashes
    assert (clash.kind, clash.name) == ("pass", "squash")
    for use in (
        registry.check,
        lambda: registry.parse("fold_bn"),
        lambda: registry.providers("anything"),
    ):
        with pytest.raises(PluginError, match="a pass named 'squash'") as caught:
            use()
        assert "plugin one (squash-a 1.0)" in str(caught.value)
        assert "plugin two (squash-b 1.0)" in str(caught.value)


def test_a_name_of_ours_cannot_be_taken(install, a_pass):
    install("theirs", a_pass("fold_bn"))
    with pytest.raises(PluginError, match="fold_bn") as caught:
        load_registry().check()
    assert "plugin fold_bn (fxopt " in str(caught.value)
    assert "plugin theirs (dist-theirs 1.0)" in str(caught.value)


def test_two_plugins_of_one_name_are_an_error_too(install, a_pass):
    install("same", a_pass("one"), package="package-a")
    install("same", a_pass("two"), package="package-b")
    registry = load_registry()
    assert {"one", "two"} <= set(registry.passes)
    with pytest.raises(PluginError, match="a plugin named 'same'") as caught:
        registry.check()
    assert "package-a" in str(caught.value)
    assert "package-b" in str(caught.value)


def test_one_plugin_must_not_use_a_name_twice(install, a_pass):
    install("double", a_pass("same", "First") + a_pass("same", "Second").replace(
        "return [Second]", "return [First, Second]"
    ))  # fmt: skip
    with pytest.raises(PluginError, match="a pass named 'same'"):
        load_registry().check()


def test_a_fact_that_nobody_declares_is_reported(install):
    install(
        "misspelt",
        """
        @dataclass(frozen=True)
        class Misspelt(Pass):
            info = PassInfo(
                name="misspelt", stage="simplify", fidelity=Exact(), requires=("tiddy",)
            )
            def run(self, program, context): ...
        @hookimpl
        def fxopt_passes(): return [Misspelt]
        @hookimpl
        def fxopt_facts(): return [Fact("tidy", "all is tidy", lambda program: [])]
        """,
    )
    registry = load_registry()
    (problem,) = registry.problems
    assert "the pass misspelt names the fact 'tiddy'" in problem.error
    assert problem.hint == "did you mean 'tidy'?"
    assert not problem.skipped
    assert "misspelt" in registry.passes
