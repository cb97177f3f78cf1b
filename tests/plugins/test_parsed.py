"""Inductor's text templates are parsed once, and only while fxopt compiles."""

import pytest
from torch._inductor.codegen.common import KernelTemplate

from fxopt_inductor.parsed import templates_parsed_once


def test_the_same_text_is_parsed_once_and_renders_with_other_values():
    source = "x = {{ value }} + {{ more|indent_except_first(1) }};"
    with templates_parsed_once():
        first = KernelTemplate._template_from_string(source)
        assert first.render(value=1, more="a\nb") == "x = 1 + a\n    b;"
    with templates_parsed_once():
        again = KernelTemplate._template_from_string(source)
        assert again.render(value=2, more="c") == "x = 2 + c;"
        assert KernelTemplate._template_from_string(source + " ") is not again
    assert again is first
    assert KernelTemplate._template_from_string(source) is not first


def test_what_cannot_be_parsed_says_so_each_time():
    with templates_parsed_once():
        for _ in range(2):
            with pytest.raises(Exception, match="line 1"):
                KernelTemplate._template_from_string("{% if %}")


def test_a_torch_that_parses_in_another_way_is_left_alone(monkeypatch):
    monkeypatch.delattr(KernelTemplate, "_template_from_string")
    with templates_parsed_once():
        assert not hasattr(KernelTemplate, "_template_from_string")
