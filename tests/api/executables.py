"""What backends of tests make of a program: a call."""

from fxopt.plugin import Executable, Lowering


class Code(Executable):
    def __init__(self, function):
        self._function = function

    def __call__(self, *inputs):
        return self._function(*inputs)


class Compile(Lowering):
    def __init__(self, function):
        self._function = function

    def compile(self, inputs):
        return Code(self._function)
