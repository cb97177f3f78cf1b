"""Who may import whom: the order of docs/architecture.md, the plugins' face, and light imports."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# A part may import those in the rows above its own.
ORDER = (
    {"errors"},
    {"ir"},
    {"analysis"},
    {"cost", "training"},
    {"passes", "backends", "report"},
    {"emit"},
    {"hookspecs"},
    {"plugin"},
    {"registry"},
    {"pipeline"},
    {"search"},
    {"api"},
    {"cli"},
    {"__main__"},
)
BELOW = {part: set().union(*ORDER[:row]) for row, parts in enumerate(ORDER) for part in parts}
# Beside the order: what these may import, and who may import them.
BELOW["frontend"] = {"errors", "ir"}
BELOW["report"] = {"errors"}
BELOW["demo"] = {"errors"}
BELOW["testing"] = BELOW["api"] | {"frontend"}
for user in ("search", "api", "cli"):
    BELOW[user] |= {"frontend"}
BELOW["cli"] |= {"demo", "__init__"}

RUNTIMES = {
    "fxopt_onnxruntime": {"onnxruntime", "onnx_ir", "onnxscript"},
    "fxopt_openvino": {"openvino"},
    "fxopt_prune": {"scipy"},
}
PLUGINS = sorted(path.name for path in (ROOT / "plugins").iterdir() if path.is_dir())

HEAVY = (
    "openvino", "onnx", "onnx_ir", "onnxruntime", "onnxscript", "nncf", "torchao", "torchvision",
    "timm", "transformers", "scipy", "sklearn", "pandas", "matplotlib", "mlxtend", "networkx",
    "rich", "typer", "accelerate", "torch._inductor", "torch._dynamo",
)  # fmt: skip


def sources(folder):
    files = sorted(folder.rglob("*.py"))
    assert files, folder
    return files


def module_name(path, base):
    parts = path.relative_to(base).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(tree, package):
    """Names of all modules that are imported, with the line; ``from a import b`` yields a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.rsplit(".", node.level - 1)[0] + "." if node.level else ""
            name = (base + (node.module or "")).strip(".")
            yield from ((f"{name}.{alias.name}", node.lineno) for alias in node.names)


def part_of(name):
    return [*name.split("."), "__init__"][1]


def fxopt_imports():
    """Every import of fxopt in fxopt: the file, the line, the part, and the part imported."""
    for path in sources(ROOT / "fxopt"):
        name = module_name(path, ROOT)
        if name == "fxopt":  # its one job is to lead to the rest, on first use
            continue
        for target, line in imported(ast.parse(path.read_text()), name):
            if target.split(".")[0] == "fxopt":
                yield f"{path.relative_to(ROOT)}:{line}", part_of(name), part_of(target)


def test_imports_go_downwards_only():
    wrong = [
        f"{place}: {part} imports {other}"
        for place, part, other in fxopt_imports()
        if part != other and other not in BELOW.get(part, set())
    ]
    assert not wrong, "\n".join(wrong)


def test_every_part_has_its_place_in_the_order():
    parts = {part_of(module_name(path, ROOT)) for path in sources(ROOT / "fxopt")}
    assert parts - {"__init__"} <= set(BELOW)


def test_the_table_of_this_test_is_that_of_the_architecture_page():
    page = (ROOT / "docs" / "architecture.md").read_text()
    (line,) = [line for line in page.splitlines() if line.startswith("Only downwards: ")]
    order = line.removeprefix("Only downwards: ").partition(".")[0]
    names = {"plugin face": "plugin"}
    rows = [{names.get(n, n) for n in row.strip().split(", ")} for row in order.split(" < ")]
    flat = [parts for parts in rows if parts != {"plugin", "hookspecs"}]
    expected = [parts for parts in ORDER if parts <= set().union(*flat)]
    assert flat == expected


def run_time_imports(path, modules):
    """What importing a module imports: neither inside functions nor for type checkers."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        guard = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        if guard or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            node.body = []
    for target, _ in imported(tree, module_name(path, ROOT)):
        for name in (target, target.rpartition(".")[0]):
            if name in modules:
                yield name
                break


def test_there_is_no_cycle():
    modules = {module_name(path, ROOT): path for path in sources(ROOT / "fxopt")}
    graph = {name: set(run_time_imports(path, modules)) for name, path in modules.items()}
    assert graph["fxopt.ir.edit"] >= {"fxopt.ir.paths", "fxopt.errors"}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which shows the cycle


@pytest.mark.parametrize("plugin", PLUGINS)
def test_first_party_plugins_import_the_public_face_alone(plugin):
    allowed = {"torch", "numpy", plugin, *RUNTIMES.get(plugin, ()), *sys.stdlib_module_names}
    wrong = []
    for path in sources(ROOT / "plugins" / plugin):
        name = module_name(path, ROOT / "plugins")
        for target, line in imported(ast.parse(path.read_text()), name):
            face = target == "fxopt.plugin" or target.startswith("fxopt.plugin.")
            if not face and target.split(".")[0] not in allowed:
                wrong.append(f"{path.relative_to(ROOT)}:{line}: {target}")
    assert not wrong, "\n".join(wrong)


def test_the_public_face_lists_what_it_offers():
    import fxopt.plugin

    tree = ast.parse((ROOT / "fxopt" / "plugin.py").read_text())
    names = {target.rpartition(".")[2] for target, _ in imported(tree, "fxopt.plugin")}
    assert names == set(fxopt.plugin.__all__)


def run(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_import_of_fxopt_is_fast_and_light(record_property):
    seconds, *loaded = run(
        "import sys, time; start = time.perf_counter(); import fxopt\n"
        f"print(time.perf_counter() - start, *[m for m in {HEAVY} if m in sys.modules])"
    )
    record_property("seconds", seconds)
    assert not loaded
    assert float(seconds) < 1.0  # some 5 ms on an idle machine


def test_plugins_load_their_runtimes_late():
    """The registry imports and asks every plugin, but no runtime before it is needed."""
    before = (
        "import sys, torch; early = set(sys.modules)\n"
        "from fxopt.registry import load_registry\n"
        "registry = load_registry()\n"
        "assert 'inductor' in registry.backends and 'openvino' in registry.backends\n"
        "assert not registry.problems, registry.problems\n"
    )
    assert run(f"{before}print(*[m for m in {HEAVY} if m in set(sys.modules) - early])") == []
