"""Nothing that is read is run: no pickle, no eval, no YAML that makes objects, no shell, no text that becomes HTML."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT

FILES = [*sorted((ROOT / "sparsereco").rglob("*.py")), *sorted((ROOT / "tools").rglob("*.py"))]
MODULES = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "jsonpickle", "pty"}
CALLS = {
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen", "subprocess.getoutput"),
    *("yaml.unsafe_load", "yaml.full_load", "yaml.load_all", "yaml.unsafe_load_all", "yaml.full_load_all"),
    *("torch.jit.load", "torch.hub.load", "np.fromfile", "np.lib.format.read_array", "pd.read_pickle"),
    *("tempfile.mktemp",),
}
ONLY_WITH = {  # what these calls may be given, and have to be given
    "torch.load": ("weights_only", {"True"}),
    "np.load": ("allow_pickle", {"False"}),
    "yaml.load": ("Loader", {"yaml.SafeLoader", "getattr(yaml, 'CSafeLoader', yaml.SafeLoader)"}),
}
IN_HTML = {
    "innerHTML",
    "outerHTML",
    "insertAdjacentHTML",
    "document.write",
    "eval(",
    "new Function",
    "createContextual",
}


def faults(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and name of what should not be there."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, one.name) for one in node.names if one.name.split(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{one.name}" for one in node.names]
            yield from ((node.lineno, name) for name in names if name.split(".")[0] in MODULES or name in CALLS)
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func).replace("numpy.", "np.")
            given = {one.arg: ast.unparse(one.value) for one in node.keywords}
            if name in CALLS or given.get("shell", "False") != "False":
                yield node.lineno, name
            if name in ONLY_WITH:
                argument, values = ONLY_WITH[name]
                if given.get(argument) not in values:
                    yield node.lineno, f"{name} without {argument}={min(values)}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_that_is_read_is_run(path: Path) -> None:
    assert list(faults(ast.parse(path.read_text()))) == []


def test_no_text_becomes_html() -> None:
    script = (ROOT / "sparsereco" / "display" / "page.js").read_text()  # beside plotly.js, all that runs in a page
    assert [word for word in IN_HTML if word in script] == []


@pytest.mark.parametrize(
    ("code", "what"),
    [
        ("import pickle", "pickle"),
        ("from joblib import load", "joblib"),
        ("eval(text)", "eval"),
        ("yaml.load(text, Loader=yaml.Loader)", "yaml.load without Loader"),
        ("torch.load(path)", "torch.load without weights_only=True"),
        ("torch.load(path, weights_only=False)", "torch.load"),
        ("numpy.load(path, allow_pickle=True)", "np.load without allow_pickle=False"),
        ("subprocess.run(text, shell=True)", "subprocess.run"),
        ("os.system(text)", "os.system"),
    ],
)
def test_it_would_be_found(code: str, what: str) -> None:
    line, found = next(faults(ast.parse(code)))
    assert line == 1
    assert found.startswith(what)
