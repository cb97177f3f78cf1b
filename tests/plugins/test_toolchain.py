"""What is found out about the compiler, with compilers that know less."""

import shutil
from dataclasses import replace

import pytest
import torch
from torch._inductor.cpp_builder import CppBuilder
from torch._inductor.cpu_vec_isa import VecAVX2, VecISA, supported_vec_isa_list

from fxopt.backends.scratch import use_scratch
from fxopt_inductor import toolchain

# Only the assembler reads what is in it.
_INSTRUCTION = 'void tried() {{ asm("{}"); }}'

pytestmark = pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512")
    or shutil.which(toolchain.cpp_compiler()) is None,
    reason="needs an x86 CPU with AVX2, and a C++ compiler",
)


@pytest.fixture(autouse=True)
def forgotten():
    toolchain.knows_instructions.cache_clear()
    toolchain._assembles.cache_clear()
    yield
    toolchain.knows_instructions.cache_clear()
    toolchain._assembles.cache_clear()


def compiler(folder, monkeypatch, refused):
    """A compiler that calls the real one, unless a flag begins as refused."""
    script = folder / "compiler"
    script.write_text(
        "#!/bin/sh\n"
        f'for flag in "$@"; do case "$flag" in {refused}*) exit 1;; esac; done\n'
        f'exec {shutil.which(toolchain.cpp_compiler())} "$@"\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))


def test_a_compiler_that_takes_all_flags(tmp_path, monkeypatch):
    compiler(tmp_path, monkeypatch, refused="-nonsense")
    assert toolchain.knows_instructions()


def test_one_flag_that_it_does_not_know_is_enough(tmp_path, monkeypatch):
    compiler(tmp_path, monkeypatch, refused="-mfma")
    assert not toolchain.knows_instructions()


def test_torch_may_be_built_for_less_than_the_cpu_has(monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    assert not toolchain.knows_instructions()


def test_a_compiler_that_is_gone(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert not toolchain.knows_instructions()


def test_further_instructions_are_assembled_and_nothing_is_built(tmp_path, monkeypatch):
    compiler(tmp_path, monkeypatch, refused="-mfp16-of-tomorrow")
    monkeypatch.setattr(CppBuilder, "build", lambda builder: pytest.fail("it was built"))
    (isa, *_) = [each for each in supported_vec_isa_list if isinstance(each, VecAVX2)]
    tomorrow = replace(isa)
    tomorrow._arch_flags = f"{isa._arch_flags} -mfp16-of-tomorrow"
    with toolchain.instructions_assembled():
        assert isa.check_build(_INSTRUCTION.format("vaddps %ymm0, %ymm1, %ymm2"))
        assert not isa.check_build(_INSTRUCTION.format("an instruction of tomorrow"))
        assert not tomorrow.check_build(_INSTRUCTION.format("nop"))


def test_where_the_compiler_lacks_some_inductor_tries_as_ever(tmp_path, monkeypatch):
    compiler(tmp_path, monkeypatch, refused="-mfma")
    before = VecISA.check_build
    with toolchain.instructions_assembled():
        assert VecISA.check_build is before


@pytest.mark.parametrize(("text", "known"), [("nop", True), ("an instruction of tomorrow", False)])
def test_what_one_process_has_found_out_another_need_not_try(tmp_path, monkeypatch, text, known):
    code = _INSTRUCTION.format(text)
    with use_scratch(tmp_path):
        assert toolchain._assembles(code, "g++") is known
        toolchain._assembles.cache_clear()
        monkeypatch.setattr(toolchain, "_tried", lambda *_: pytest.fail("it was tried again"))
        assert toolchain._assembles(code, "g++") is known
