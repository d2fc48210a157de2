"""The layers hold: a module imports only from rows below its own, and the outermost imports stay light."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Lowest row first. A module imports only from rows before its own.
ROWS: list[set[str]] = [
    {
        "bytelm.errors",
        "bytelm.hub",
        "bytelm.names",
        "bytelm.presets",
        "bytelm.sandbox_inside",
        "bytelm.data.frame_packer",
        "bytelm.data.json_recovery",
        "bytelm.engine.build",
    },
    {
        "bytelm.bounded_reading",
        "bytelm.calls",
        "bytelm.utf8",
        "bytelm.vocab",
        "bytelm.engine.handles",
        "bytelm.engine.library",
    },
    {"bytelm.own_files"},
    {
        "bytelm.engine.interface",
        "bytelm.files",
        "bytelm.labels",
        "bytelm.masks",
        "bytelm.model_shape",
        "bytelm.ngram_rows",
        "bytelm.page",
        "bytelm.machine",
        "bytelm.sandbox",
        "bytelm.polynomials",
        "bytelm.stories",
        "bytelm.palette",
        "bytelm.split_tensors",
        "bytelm.state",
        "bytelm.suffixes",
        "bytelm.uncompiled",
        "bytelm.utf8_automaton",
        "bytelm.data.documents",
        "bytelm.data.kinds",
        "bytelm.data.measures",
        "bytelm.data.order",
        "bytelm.data.patterns",
        "bytelm.data.schedule",
        "bytelm.data.shard_file",
        "bytelm.data.split",
        "bytelm.data.duplicates",
        "bytelm.data.workers",
        "bytelm.cli.console",
        "bytelm.cli.interrupt",
        "bytelm.cli.quick_command",
        "bytelm.cli.quantities",
    },
    {"bytelm.engine.model"},
    {"bytelm.engine.session"},
    {"bytelm.engine.decoder"},
    {
        "bytelm.device",
        "bytelm.engine",
        "bytelm.shipped",
        "bytelm.data.clutter",
        "bytelm.data.compression",
        "bytelm.data.file_names",
        "bytelm.data.index",
        "bytelm.data.path_filter",
        "bytelm.data.engine",
        "bytelm.data.storage",
    },
    {"bytelm.task_data", "bytelm.engine.weights"},
    {"bytelm.programs"},
    {
        "bytelm.data.cache",
        "bytelm.data.filters",
        "bytelm.data.forms",
        "bytelm.data.ingest_report",
        "bytelm.data.table_rows",
    },
    {"bytelm.data.csv_rows", "bytelm.data.json_rows"},
    {"bytelm.data.addresses", "bytelm.data.archives", "bytelm.data.tables", "bytelm.data.walk"},
    {"bytelm.data.kept_content", "bytelm.data.reading"},
    {
        "bytelm.config",
        "bytelm.mfu",
        "bytelm.run_log",
        "bytelm.data.sources",
        "bytelm.data.shards",
        "bytelm.kv_cache",
    },
    {"bytelm.data.frames", "bytelm.ranks"},
    {"bytelm.data.windows"},
    {"bytelm.data.document_windows"},
    {"bytelm.data.fetcher"},
    {"bytelm.data.window_pool"},
    {"bytelm.data.batches"},
    {"bytelm.data.unit_table"},
    {"bytelm.data.survey"},
    {"bytelm.data.ingest_settings", "bytelm.data.journal", "bytelm.data.plan"},
    {"bytelm.data.pack"},
    {"bytelm.data.ingest_steps", "bytelm.data.workplace"},
    {"bytelm.data.ingest_start"},
    {"bytelm.attention_blocks", "bytelm.muon"},
    {"bytelm.attention_flex", "bytelm.attention_torch", "bytelm.attention_xformers"},
    {
        "bytelm.attention",
        "bytelm.averaging",
        "bytelm.bpe",
        "bytelm.packing",
        "bytelm.optim",
        "bytelm.schedule",
        "bytelm.sampling",
        "bytelm.data.describe",
        "bytelm.data.verify",
        "bytelm.data.ingest",
        "bytelm.data.loader",
    },
    {"bytelm.data.mixture", "bytelm.pair_correction", "bytelm.checkpoint_files"},
    {"bytelm.layers", "bytelm.probes"},
    {"bytelm.heads", "bytelm.fused_loss", "bytelm.ngrams"},
    {"bytelm.law", "bytelm.model"},
    {"bytelm.pairs"},
    {"bytelm.drafting"},
    {"bytelm.generation"},
    {"bytelm.arguments", "bytelm.outlet", "bytelm.decoding.plan"},
    {
        "bytelm.compiling",
        "bytelm.loss",
        "bytelm.checkpoint",
        "bytelm.scoring",
        "bytelm.decoding.costs",
        "bytelm.decoding.engine_decode",
        "bytelm.decoding.engine_score",
        "bytelm.decoding.torch_decode",
    },
    {"bytelm.fine_tuning", "bytelm.export", "bytelm.plans"},
    {"bytelm.decode", "bytelm.distributed", "bytelm.memory", "bytelm.saver"},
    {"bytelm.evaluate", "bytelm.tune"},
    {"bytelm.breakdown", "bytelm.foreign", "bytelm.likelihood"},
    {"bytelm.corpora", "bytelm.token_packing"},
    {"bytelm.vocabularies"},
    {"bytelm.run_folder"},
    {"bytelm.job"},
    {"bytelm.events", "bytelm.step"},
    {"bytelm.train", "bytelm.doctor"},
    {
        "bytelm.api",
        "bytelm.arithmetic_coding",
        "bytelm.estimate",
        "bytelm.figures",
        "bytelm.held_out",
        "bytelm.history",
        "bytelm.tensorboard",
    },
    {"bytelm.run_curves"},
    {"bytelm.task"},
    {"bytelm.task_bpb"},
    {
        "bytelm.task_acceptance",
        "bytelm.task_choices",
        "bytelm.task_cute",
        "bytelm.task_probes",
        "bytelm.task_programs",
        "bytelm.task_utf8",
    },
    {"bytelm.harness", "bytelm.tasks"},
    {"bytelm.report"},
    {"bytelm.arms"},
    {"bytelm.comparison_measure", "bytelm.comparison_text", "bytelm.comparison_tuning", "bytelm.probe"},
    {"bytelm.compare"},
    {"bytelm.comparison_facts"},
    {"bytelm.comparison_figures"},
    {"bytelm.comparison_page"},
    {"bytelm.quickstart"},
    {"bytelm.cli.inspect_page", "bytelm.cli.inspect_view"},
    {"bytelm.cli.early"},
    {"bytelm.cli.command", "bytelm.cli.usage"},
    {"bytelm.cli.grouped_help"},
    {"bytelm.cli.dashboard"},
    {
        "bytelm.cli.completion",
        "bytelm.cli.doctor",
        "bytelm.cli.dry_run",
        "bytelm.cli.generate_view",
        "bytelm.cli.generation_json",
    },
    {"bytelm.cli.generate_many"},
    {
        "bytelm.cli.ingest",
        "bytelm.cli.train",
        "bytelm.cli.generate",
        "bytelm.cli.evaluate",
        "bytelm.cli.report",
        "bytelm.cli.compare",
        "bytelm.cli.probe",
        "bytelm.cli.export",
    },
    {"bytelm.cli.inspect", "bytelm.cli.quickstart", "bytelm.cli.tune"},
    {"bytelm.cli.app"},
    {"bytelm.cli.__main__"},
    {"bytelm.__main__"},
]
PACKAGES = {"bytelm", "bytelm.data", "bytelm.cli", "bytelm.decoding"}
"""Packages whose own module holds no code; that of bytelm.engine does, and has a row."""
HEAVY = {"torch", "numpy", "pydantic", "xformers", "matplotlib", "safetensors"}
TORCH_IN_DATA = {"bytelm.data.batches"}


def module_files() -> dict[str, Path]:
    files: dict[str, Path] = {}
    for package, folder in (("bytelm", "bytelm"), ("bytelm.data", "data"), ("bytelm.cli", "cli")):
        for path in sorted((ROOT / folder).rglob("*.py")):
            if any(parent.is_symlink() for parent in path.parents):
                continue  # the folder has a package name of its own
            inside = path.relative_to(ROOT / folder).with_suffix("").parts
            files[".".join((package, *(part for part in inside if part != "__init__")))] = path
    return files


def imports_of(path: Path) -> Iterator[str]:
    """Modules that a file imports anywhere but under TYPE_CHECKING, as absolute names."""
    names = set(module_files())

    def visit(node: ast.AST) -> Iterator[str]:
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            assert node.module is not None
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in names else node.module
        for child in ast.iter_child_nodes(node):
            yield from visit(child)

    yield from visit(ast.parse(path.read_text(encoding="utf-8")))


def test_every_module_has_a_row() -> None:
    listed = set().union(*ROWS)
    assert sum(len(row) for row in ROWS) == len(listed), "a module stands in two rows"
    assert listed == set(module_files()) - PACKAGES


def test_a_module_imports_only_from_rows_below_its_own() -> None:
    row_of = {name: row for row, names in enumerate(ROWS) for name in names}
    wrong = [
        f"{name} imports {imported}"
        for name, path in module_files().items()
        if name in row_of
        for imported in imports_of(path)
        if imported in row_of and row_of[imported] >= row_of[name]
    ]
    assert not wrong


def test_in_data_only_the_loader_imports_torch() -> None:
    with_torch = {
        name
        for name, path in module_files().items()
        if name.startswith("bytelm.data") and any(module.split(".")[0] == "torch" for module in imports_of(path))
    }
    assert with_torch == TORCH_IN_DATA


@pytest.mark.parametrize("code", ["import bytelm", "from bytelm.cli.app import make_app; make_app()"])
def test_the_outermost_imports_load_nothing_heavy(code: str) -> None:
    code = f"{code}; import sys; print(*sorted({HEAVY!r} & set(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT)
    assert loaded.stdout.split() == []


def test_the_engine_and_its_weights_load_no_torch() -> None:
    code = "import bytelm.engine.weights, sys; print('torch' in sys.modules, 'pydantic' in sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT)
    assert loaded.stdout.split() == ["False", "False"]
