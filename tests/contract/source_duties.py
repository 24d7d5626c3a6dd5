"""What a source file does that it may have no right to: writing files, running code from data, pickling, a shell."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator

#: Modules that run code from data or write it so that reading it does.
UNSAFE_MODULES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}

#: Calls that run code or a shell, by full name.
UNSAFE = {
    "eval",
    "exec",
    "compile",
    "os.system",
    "os.popen",
    "torch.save",
    "torch.serialization.save",
    "yaml.load",
    "yaml.load_all",
    "yaml.full_load",
    "yaml.unsafe_load",
    "yaml.unsafe_load_all",
    "subprocess.getoutput",
    "subprocess.getstatusoutput",
}

#: Calls that write, by full name; of ``shutil`` and ``tempfile`` all but what only looks.
OF_OS = """write pwrite mkdir makedirs remove unlink rmdir removedirs rename renames replace truncate ftruncate link
symlink mkfifo mknod utime chmod copy_file_range"""
OF_NUMPY = "save savez savez_compressed savetxt memmap"
WRITES = {
    *(f"os.{name}" for name in OF_OS.split()),
    *(f"numpy.{name}" for name in OF_NUMPY.split()),
    "numpy.lib.format.open_memmap",
    "json.dump",
    "onnx.save",
    "onnx.save_model",
    "openvino.save_model",
    "safetensors.torch.save_file",
    "safetensors.numpy.save_file",
    "torch.utils.tensorboard.SummaryWriter",
    "sqlite3.connect",
}
ONLY_LOOKS = {"shutil.disk_usage", "shutil.get_terminal_size", "shutil.which", "tempfile.gettempdir"}

#: Methods that write, of whatever object: those of paths, arrays and figures.
OF_PATHS = "write_text write_bytes touch mkdir unlink rmdir rename symlink_to hardlink_to"
WRITING_METHODS = {*OF_PATHS.split(), "tofile", "savefig", "save_pretrained"}

#: Calls with a mode, and which positional argument it is.
MODES = {"open": 1, "io.open": 1, "gzip.open": 1, "bz2.open": 1, "lzma.open": 1, "tarfile.open": 1, "os.fdopen": 1}
MODES |= {"zipfile.ZipFile": 1, "codecs.open": 1}

ACCELERATOR = re.compile(r"(cuda|mps|xpu|hpu)(:\d+)?")

READING = re.compile(r"r?[btU]?(:.*|\|.*)?")


#: Each source is read for many questions.
parsed = functools.cache(ast.parse)


def full_names(tree: ast.AST) -> dict[str, str]:
    """Name in this file -> what it was imported as."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.split(".")[0]
                names[alias.asname or top] = alias.name if alias.asname else top
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.update({a.asname or a.name: f"{node.module}.{a.name}" for a in node.names})
    return names


def full_name(node: ast.expr, names: dict[str, str]) -> str | None:
    """``np.save`` -> ``numpy.save``; None for what is no plain name, and for a method of some object a leading dot."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if isinstance(node, ast.Name) and (node.id in names or not parts):
        return ".".join([names.get(node.id, node.id), *reversed(parts)])
    return f".{parts[0]}" if parts else None


def accelerators(source: str) -> Iterator[tuple[int, str]]:
    """(line, what) of each place that names an accelerator: a constant, a part of torch, a question to a tensor.

    The CPU is not one: it is where everything is read from and written to.
    """
    tree = parsed(source)
    names = full_names(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and ACCELERATOR.fullmatch(node.value):
            yield node.lineno, node.value
        elif isinstance(node, ast.Attribute) and node.attr in ("is_cuda", "is_mps", "is_xpu", "cuda", "xpu"):
            yield node.lineno, full_name(node, names) or f".{node.attr}"
        elif isinstance(node, ast.Attribute) and full_name(node, names) == "torch.mps":
            yield node.lineno, "torch.mps"
        elif isinstance(node, ast.ImportFrom) and re.match(r"torch\.(backends\.)?(cuda|mps|xpu)\b", node.module or ""):
            yield node.lineno, str(node.module)


def unsafe(source: str) -> Iterator[tuple[int, str]]:
    """(line, what) of each pickle, shell and evaluation of text."""
    tree = parsed(source)
    names = full_names(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            for module in modules:
                if module.split(".")[0] in UNSAFE_MODULES:
                    yield node.lineno, module
        if not isinstance(node, ast.Call):
            continue
        called, options = full_name(node.func, names), {k.arg: k.value for k in node.keywords}
        if called in UNSAFE:
            yield node.lineno, called
        if "shell" in options and not _is(options["shell"], False):
            yield node.lineno, "shell"
        if called == "torch.load" and not _is(options.get("weights_only"), True):
            yield node.lineno, "torch.load without weights_only"
        if "allow_pickle" in options and not _is(options["allow_pickle"], False):
            yield node.lineno, "allow_pickle"


def writers(source: str) -> Iterator[tuple[int, str]]:
    """(line, what) of each call that writes a file, or makes, moves or removes one."""
    tree = parsed(source)
    names = full_names(tree)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = full_name(node.func, names)
        if called is None:
            continue
        top, _, method = called.rpartition(".")
        if called in WRITES or (top in ("shutil", "tempfile") and called not in ONLY_LOOKS):
            yield node.lineno, called
        elif method in WRITING_METHODS and called not in names.values():
            yield node.lineno, f".{method}"
        elif called == "os.open":
            if any(flag in ast.unparse(node) for flag in ("O_WRONLY", "O_RDWR", "O_CREAT", "O_APPEND", "O_TRUNC")):
                yield node.lineno, called
        elif called == "yaml.dump" and (len(node.args) > 1 or any(k.arg == "stream" for k in node.keywords)):
            yield node.lineno, called
        elif (called in MODES or method == "open") and not _opens_for_reading(node, called):
            yield node.lineno, f"{called} for writing"


def _opens_for_reading(call: ast.Call, called: str) -> bool:
    """Whether the mode of an ``open`` says so, or none is given. One that is computed does not say so."""
    place = MODES.get(called)
    modes = [option.value for option in call.keywords if option.arg == "mode"]
    if place is not None:
        modes += call.args[place : place + 1]
    else:  # a method: the mode of a path is its first argument, that of an archive's member its second
        modes += [
            given for given in call.args[:2] if isinstance(given, ast.Constant) and _looks_like_a_mode(given.value)
        ]
    return all(isinstance(mode, ast.Constant) and bool(READING.fullmatch(str(mode.value))) for mode in modes)


def _looks_like_a_mode(value: object) -> bool:
    return isinstance(value, str) and bool(re.fullmatch(r"[rwaxbtU+]{1,4}", value))


def _is(node: ast.expr | None, value: bool) -> bool:
    return isinstance(node, ast.Constant) and node.value is value
