"""The documents tell the truth: their Python blocks run, their links lead somewhere, their commands exist.

A ```python block with `>>>` is a doctest, one without is run as it stands. The blocks of one document share their names,
in order, and run in an empty folder. A document whose blocks import torch or qat is skipped where torch is not installed.
"""

import doctest
import json
import re
from pathlib import Path
from statistics import mean

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "csrc" / "README.md",
]
DOCUMENTS = [path for path in DOCUMENTS if path.exists()]
PYTHON_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)[^)]*\)")
DOCTEST_FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


def python_blocks(path):
    """The (line number, source) of every Python block of a document."""
    text = path.read_text(encoding="utf-8")
    return [(text.count("\n", 0, match.start(1)) + 1, match[1]) for match in PYTHON_BLOCK.finditer(text)]


def name(path):
    return str(path.relative_to(ROOT))


def run_doctest(source, names, path, line):
    """Run one `>>>` block with `names` as its globals, which keep what it defines."""
    test = doctest.DocTestParser().get_doctest(source, names, f"{name(path)}:{line}", str(path), line - 1)
    report = []
    runner = doctest.DocTestRunner(optionflags=DOCTEST_FLAGS)
    runner.run(test, out=report.append, clear_globs=False)
    names.update(test.globs)  # get_doctest works on a copy
    assert not runner.failures, "".join(report)


@pytest.mark.parametrize("path", [path for path in DOCUMENTS if python_blocks(path)], ids=name)
def test_python_blocks_run(path, tmp_path, monkeypatch):
    blocks = python_blocks(path)
    if any(re.search(r"\b(torch|qat)\b", source) for _, source in blocks):
        pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__document__"}
    for line, source in blocks:
        if ">>> " in source:
            run_doctest(source, names, path, line)
        else:
            exec(compile("\n" * (line - 1) + source, str(path), "exec"), names)


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_links_lead_somewhere(path):
    targets = [target for target in LINK.findall(path.read_text(encoding="utf-8")) if "://" not in target]
    missing = [target for target in targets if not (path.parent / target).exists()]
    assert not missing, f"{name(path)} links to files that do not exist: {missing}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_make_targets_exist(path):
    rules = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = set(re.findall(r"^(?:\$ )?make ([a-z-]+)|`make ([a-z-]+)", path.read_text(encoding="utf-8"), re.MULTILINE))
    unknown = {a or b for a, b in named} - rules
    assert not unknown, f"{name(path)} names make targets that do not exist: {sorted(unknown)}"


README_ROWS = {
    "1-bit weights, 1-bit activations": "W1A1 {tier}",
    "1-bit, 4-bit": "W1A4 {tier}",
    "2-bit, 2-bit": "W2A2 {tier}",
    "4-bit, 4-bit": "W4A4 {tier}",
    "8-bit, 8-bit": "W8A8 {tier}",
    "BF16, torch": "BF16 (torch)",
    "FP32, torch": "FP32 (torch)",
}


@pytest.mark.parametrize(
    ("title", "folder", "tier"),
    [("speed over the best INT8", "", "avx512_vbmi"), ("with AMX: speed over the best INT8", "xeon_amx", "amx")],
    ids=["avx512_vbmi", "amx"],
)
def test_readme_speeds_are_the_results_files(title, folder, tier):
    """Every figure of the README's tables is that of gemm.json or gemv.json of that machine, with their date and version."""
    readme = (ROOT / "README.md").read_text()
    files = [ROOT / "benchmarks/results" / folder / f"{suite}.json" for suite in ("gemm", "gemv")]
    results = [json.loads(file.read_text()) for file in files]
    ratios = {(tuple(row["shape"]), row["name"]): row["ratio"] for result in results for row in result["rows"]}
    header, _, *rows = readme[readme.index(f"| {title} |") :].splitlines()[: 2 + len(README_ROWS)]
    shapes = [tuple(map(int, cell.split("x"))) for cell in header.strip("| ").split("|")[1:]]
    for row, (label, name) in zip(rows, README_ROWS.items(), strict=True):
        cells = (f"{ratios[shape, name.format(tier=tier)]:.2f}x" for shape in shapes)
        assert row == f"| {label} | {' | '.join(cells)} |"
    for result in results:
        assert result["machine"]["date"] in readme
        assert result["machine"]["versions"]["torch"] in readme


def test_readme_networks_are_the_results_files():
    """Every figure of the README's paragraph on whole networks is that of benchmarks/results/cnns.json or memory.json."""
    readme = (ROOT / "README.md").read_text()

    def over(network: str, label: str, whom: str = "best", folder: str = "") -> str:
        rows = json.loads((ROOT / "benchmarks/results" / folder / "cnns.json").read_text())["rows"]
        found = {(row["network"], row["name"]): row for row in rows if (row["batch"], row["threads"]) == (1, 1)}
        return f"{found[network, label][f'over_{whom}_int8']:.2f}x"

    deep, deeper = (
        [over(net, label) for label in ("1x1", "{1,4}, 80 % low", "4x4")] for net in ("ResNet-18", "ResNet-50")
    )
    assert (
        f"ResNet-18 {deep[0]} with inner layers of 1 bit, {deep[1]} with 1 and 4 bits mixed, {deep[2]} with 4 bits"
        in readme
    )
    assert f"ResNet-50 {deeper[0]}, {deeper[1]} and {deeper[2]}" in readme
    slim = over("MobileNetV2", "4x4"), over("MobileNetV2", "4x4", "torch")
    assert f"MobileNetV2 with 4 bits reaches {slim[0]} (over torch's INT8 alone {slim[1]})" in readme
    assert f"ResNet-20 with 4 bits {over('ResNet-20', '4x4')}" in readme
    amx = {net: over(net, "4x4", folder="xeon_amx") for net in ("ResNet-18", "ResNet-50", "VGG-small")}
    torch = over("ResNet-18", "4x4", "torch", "xeon_amx")
    reached = f"ResNet-18 reaches {amx['ResNet-18']} (over torch's INT8 alone {torch})"
    assert f"{reached}, ResNet-50 {amx['ResNet-50']}, VGG-small {amx['VGG-small']}" in readme
    ports = [over("ResNet-18", label, folder="xeon_avx512") for label in ("1x1", "2x2", "4x4")]
    assert f"ResNet-18 reaches {ports[0]} with 1 bit, {ports[1]} with 2 and {ports[2]} with 4" in readme
    peaks = {
        row["name"]: row["peak_bytes"]
        for row in json.loads((ROOT / "benchmarks/results/memory.json").read_text())["rows"]
    }
    shares = [f"{100 * peak / peaks['OpenVINO INT8']:.0f}" for name, peak in peaks.items() if "INT8" not in name]
    assert f"Peak memory of ResNet-18 is {min(shares)} to {max(shares)} % of OpenVINO's" in readme


ACCURACIES = {
    "fp32": "FP32",
    "soniq-4": "3 or 5 bits, learned",
    "uniform-2": "2 bits",
    "soniq-2-blocks": "1 or 4 bits, learned, in blocks of the kernels",
    "soniq-2": "1 or 4 bits, learned",
    "soniq-1.5": "1 or 4 bits, learned",
    "soniq-1.25": "1 or 3 bits, learned",
    "uniform-1": "1 bit",
}


def accuracy_rows() -> list[str]:
    """The README's table of accuracies, made of the results of examples/fashion_mnist.py."""
    lines = []
    for recipe, label in ACCURACIES.items():
        files = sorted((ROOT / "examples/results/fashion_mnist").glob(f"{recipe}-[0-9].json"))
        runs = [json.loads(file.read_text()) for file in files]
        first, scores = runs[0], [run["accuracy"] for run in runs]
        a_bits = first.get("a_palette", first.get("palette", [32]))[-1]
        lines.append(
            f"| {label} | {first['inner_bits']:g} | {a_bits} | {first['compression']:.1f}x | {mean(scores):.2f} % | {len(runs)} |"
        )
    return lines


def test_readme_accuracies_are_the_results_files():
    """The README's table of accuracies is that of the runs in examples/results/fashion_mnist/."""
    readme = (ROOT / "README.md").read_text()
    assert [row for row in accuracy_rows() if row not in readme] == []
    times = json.loads((ROOT / "examples/results/fashion_mnist/times.json").read_text())["microseconds"]
    assert times["soniq-2-blocks"] < times["uniform-2"] < times["soniq-2"], "the paragraph says so"


def test_readme_resnet20_is_the_results_files():
    """The README's sentence on ResNet-20 is that of the runs in examples/results/fashion_mnist_resnet20/."""
    readme, folder = (ROOT / "README.md").read_text(), ROOT / "examples/results/fashion_mnist_resnet20"
    ours, base = (json.loads((folder / f"{name}.json").read_text()) for name in ("soniq-1.98-0", "fp32-0"))
    assert (
        f"with {ours['network_bits']:.2f} bits a weight over the whole network, {ours['compression']}x smaller"
        in readme
    )
    assert f"reaches {ours['accuracy']} % where FP32, trained as long, has {base['accuracy']} %" in readme
    compared = ours["layers"]["values"] + ours["network"]["values"] + ours["new_process"]["outputs"]
    assert f"none of {compared:,} outputs differs" in readme
    assert not any(ours[what]["different"] for what in ("layers", "network", "new_process"))


def test_readme_transformer_is_the_results_files():
    """The README's paragraph on the Transformer is that of the runs in examples/results/char_gpt/."""
    readme = (ROOT / "README.md").read_text()
    folder = ROOT / "examples/results/char_gpt"

    def lost(recipe: str) -> str:
        runs = [json.loads(file.read_text()) for file in sorted(folder.glob(f"{recipe}-[0-9].json"))]
        floats = [json.loads((folder / f"fp32-{run['seed']}.json").read_text()) for run in runs]
        return f"{mean(run['loss'] - base['loss'] for run, base in zip(runs, floats, strict=True)):.3f}"

    smaller = json.loads((folder / "soniq-4.5-0.json").read_text())["compression"]
    assert f"{smaller:.1f} times smaller it loses {lost('soniq-4.5')} nats" in readme
    assert f"4-bit weights and activations everywhere: {lost('uniform-4')}" in readme
    assert f"the learned allocation loses {lost('soniq-2.5')}" in readme
    assert f"largest weights {lost('magnitude-2.5')}, and channels at random {lost('random-2.5')}" in readme
