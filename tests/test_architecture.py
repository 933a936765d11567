"""The shape of the package, read from its source: imports point one way, files stay short, nothing is unpickled, and
randomness is always an argument."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "mri_n2n"
FILES = sorted(PACKAGE.rglob("*.py"))
SCRIPTS = sorted((PACKAGE.parent / "data_scripts").glob("*.py"))

# What an array method may stand on: these modules know nothing of files, data sets, training or the command line.
ARRAYS = {
    "acquisition", "baselines", "channels", "coils", "corruptions", "denoising", "denoising.blind_spot", "denoising.networks", "denoising.own_pixels",
    "denoising.rician", "denoising.whiteness", "density", "errors", "fourier", "losses", "masks", "movement", "networks", "noise",
    "operators", "pairs", "penalties", "phantom", "regularisation", "unet", "fastmri_networks",
}  # fmt: skip


def name_of(path: Path) -> str:
    """mri_n2n/formats/nifti.py -> "formats.nifti"; a folder's __init__ -> the folder; the package's own -> ""."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").rstrip(".")


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), filename=str(path))


MODULES = {name_of(path): path for path in FILES}


def resolve(target: str) -> str | None:
    """The module of the package that a dotted name lies in, or None when it is another package's."""
    if target.split(".")[0] != "mri_n2n":
        return None
    target = target.removeprefix("mri_n2n").lstrip(".")
    while target not in MODULES:
        target = target.rpartition(".")[0]
    return target


def imports(module: str) -> set[str]:
    """Modules of the package that a module imports, inside its functions too; the package's own __init__ excepted,
    which holds the version and looks verbs up by name when they are asked for."""
    found = set()
    for node in ast.walk(tree(MODULES[module])):
        if isinstance(node, ast.Import):
            found.update(resolve(alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            found.update(resolve(f"{node.module}.{alias.name}") for alias in node.names)
    return found - {None, "", module}


def reachable(module: str) -> set[str]:
    found, waiting = set(), [module]
    while waiting:
        new = imports(waiting.pop()) - found
        found |= new
        waiting += new
    return found


def test_the_walk_finds_the_package():
    assert {"cli", "training", "masks", "fourier", "acquisition"} <= set(MODULES)
    assert "fourier" in imports("operators") and "training" in imports("cli")


@pytest.mark.parametrize("module", sorted(MODULES))
def test_no_module_reaches_itself(module):
    assert module not in reachable(module), f"import cycle through {module}"


def test_imports_can_be_put_in_one_order_from_cli_down_to_the_bottom():
    """Levels from the imports themselves: 0 imports nothing of the package, every other is one above its highest import."""
    level: dict[str, int] = {}
    while len(level) < len(MODULES):
        ready = [m for m in MODULES if m not in level and imports(m) <= set(level)]
        assert ready, f"import cycle among {sorted(set(MODULES) - set(level))}"
        level.update({m: 1 + max((level[i] for i in imports(m)), default=-1) for m in ready})
    assert {level[m] for m in ("acquisition", "errors", "fourier")} == {0}
    assert level["fourier"] < level["operators"] < level["networks"] < level["checkpoint"] < level["training"]
    assert level["cli"] == max(level[m] for m in MODULES if m != "__main__" and not m.startswith("benchmarks."))
    assert level["__main__"] == level["cli"] + 1
    for module in MODULES:
        for imported in imports(module):
            assert level[imported] < level[module]


def test_the_command_line_is_imported_by_nobody_but_main():
    assert {m for m in MODULES if "cli" in imports(m)} <= {"__main__"}


@pytest.mark.parametrize("module", sorted(ARRAYS))
def test_methods_on_arrays_know_nothing_of_files(module):
    assert reachable(module) <= ARRAYS


def test_formats_know_nothing_of_training():
    for module in MODULES:
        if module.startswith("formats"):
            outside = {m for m in reachable(module) if not m.startswith("formats")}
            assert outside <= ARRAYS | {"files"}, f"{module} reaches {outside - ARRAYS}"


def test_the_package_itself_imports_only_the_standard_library():
    """`import mri_n2n` is quick and changes nothing: verbs are imported when they are asked for."""
    for node in ast.walk(tree(PACKAGE / "__init__.py")):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            assert all(name.split(".")[0] in sys.stdlib_module_names for name in names)
    code = "import sys, mri_n2n, mri_n2n.cli; assert not {'torch', 'numpy', 'fastmri'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, check=True, timeout=60)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_files_are_short(path):
    lines = path.read_text().splitlines()
    assert len(lines) <= 400, f"{len(lines)} lines: split it"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_every_module_says_what_it_is(path):
    if path.read_text().strip():
        assert ast.get_docstring(tree(path))


def dotted(node: ast.AST) -> str:
    """ "torch.random.manual_seed" for such an attribute, "" for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{left}.{node.attr}" if (left := dotted(node.value)) else ""
    return ""


def calls(path: Path) -> list[tuple[str, ast.Call]]:
    return [(dotted(node.func), node) for node in ast.walk(tree(path)) if isinstance(node, ast.Call)]


@pytest.mark.parametrize("path", FILES + SCRIPTS, ids=lambda path: path.name)
def test_nothing_is_unpickled_or_evaluated(path):
    pickling = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    for node in ast.walk(tree(path)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        assert not {name.split(".")[0] for name in names} & pickling
        if isinstance(node, ast.ImportFrom) and node.module == "torch":
            assert "load" not in {alias.name for alias in node.names}
    for name, call in calls(path):
        assert name not in {"torch.load", "torch.save", "torch.jit.load", "eval", "exec"}, (
            f"{name} at line {call.lineno}"
        )
        for keyword in call.keywords:
            assert keyword.arg != "allow_pickle" or not getattr(keyword.value, "value", True), f"line {call.lineno}"


DRAWING = {"rand", "randn", "randint", "randperm", "normal", "bernoulli", "multinomial", "poisson"}


@pytest.mark.parametrize("path", FILES + SCRIPTS, ids=lambda path: path.name)
def test_no_global_randomness(path):
    """Draws take a generator; the global one is seeded in training.py alone, for initial weights."""
    seeds = 0
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            assert "random" not in {alias.name for alias in node.names}, f"line {node.lineno}"
        if isinstance(node, ast.ImportFrom):
            assert node.module not in {"random", "numpy.random", "torch.random"}, f"line {node.lineno}"
    for name, call in calls(path):
        where = f"{name} at line {call.lineno}"
        if name in {
            "torch.manual_seed",
            "torch.random.manual_seed",
            "torch.cuda.manual_seed",
            "torch.cuda.manual_seed_all",
        }:
            seeds += 1
        assert name not in {"torch.seed", "torch.set_rng_state", "torch.random.seed", "torch.random.set_rng_state"}, (
            where
        )
        assert not name.startswith(("np.random.", "numpy.random.")) or name.endswith(
            (".default_rng", ".Generator", ".SeedSequence", ".PCG64")
        ), where
        assert not (name.endswith(".default_rng") and not call.args and not call.keywords), f"{where}: no seed"
        if name in {f"torch.{draw}" for draw in DRAWING} | {f"torch.{draw}_like" for draw in DRAWING}:
            assert "generator" in {keyword.arg for keyword in call.keywords}, where
        method = call.func.attr if isinstance(call.func, ast.Attribute) else ""
        if method in {
            "normal_",
            "uniform_",
            "bernoulli_",
            "random_",
            "exponential_",
            "multinomial",
        } and not name.startswith("nn.init."):
            assert "generator" in {keyword.arg for keyword in call.keywords}, f".{method} at line {call.lineno}"
    assert seeds <= (path == PACKAGE / "training.py"), "only training.py may seed the global generator"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_process_wide_settings_are_made_by_the_command_line(path):
    """None on import: such calls stand inside functions, and those of threads and allocator in cli.py and process.py."""
    settings = {
        "torch.set_num_threads",
        "torch.set_num_interop_threads",
        "torch.set_default_dtype",
        "torch.set_default_device",
        "mallopt",
    }
    allowed = path.name in {"cli.py", "process.py"}
    for name, call in calls(path):
        if name in settings or name.endswith(".mallopt"):
            assert allowed, f"{name} at line {call.lineno}"
    for node in tree(path).body:  # at module level nothing is configured
        for inner in ast.walk(node) if isinstance(node, (ast.Expr, ast.Assign)) else ():
            if isinstance(inner, ast.Call):
                assert dotted(inner.func) not in settings and not dotted(inner.func).startswith(
                    ("os.environ", "torch.backends")
                )
