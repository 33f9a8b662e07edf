"""Let the CUDA builds of torchvision and torchaudio import beside a CPU-only torch.

Some package indexes only have CUDA wheels of both. With a CPU-only torch, torchvision fails because the operators that
its compiled part declares are missing, and torchaudio because its compiled part cannot be loaded; both installed but
broken, they also break `import lightning` and `import open_clip`. Their Python parts work without the compiled ones.

`python .ci/cpu_torch.py` (called by `make setup`) tries both imports. Only if torch is CPU-only and one of them fails,
it copies this file into site-packages, with a `.pth` line that activates it when the interpreter starts, so that it
also works in processes that import lightning before im2wav (spawned workers). Otherwise it changes nothing. The file
must not import im2wav, nor anything large at the top.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import pathlib
import subprocess
import sys
import sysconfig
from typing import ClassVar

NAME = "_im2wav_cpu_torch"
PACKAGES = ("torchvision", "torchaudio")
_kept: list = []


class _Loader(importlib.abc.Loader):
    """Run `before`, then the module's own loader, then `after(module)`."""

    def __init__(self, inner, before=None, after=None):
        self.inner, self.before, self.after = inner, before, after

    def create_module(self, spec):
        return self.inner.create_module(spec)

    def exec_module(self, module):
        if self.before:
            self.before()
        self.inner.exec_module(module)
        if self.after:
            self.after(module)


def _declare_torchvision_operators():
    """Declare what torchvision registers fake kernels for when it is imported, unless they exist already."""
    import torch

    if torch.version.cuda is not None or hasattr(torch.ops.torchvision, "nms"):
        return
    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        library.define(operator + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _kept.append(library)  # they vanish when the library object does


def _without_compiled_part(utils):
    """Make torchaudio use its Python code, as a build without its extension does."""
    import torch

    if torch.version.cuda is None:
        utils._load_lib = lambda lib: False


class Finder(importlib.abc.MetaPathFinder):
    """Wraps the loaders of the two modules; other imports are unchanged."""

    hooks: ClassVar[dict] = {
        "torchvision": {"before": _declare_torchvision_operators},
        "torchaudio._extension.utils": {"after": _without_compiled_part},
    }

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        """Find the module as usual and wrap its loader."""
        if name not in cls.hooks:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, **cls.hooks[name])
        return spec


def activate():
    """Install the finder in this process."""
    if Finder not in sys.meta_path:
        sys.meta_path.insert(0, Finder)


def _failure(package):
    """The last line of what `import package` prints in a fresh interpreter; None where it works or is absent."""
    if importlib.util.find_spec(package) is None:
        return None
    run = subprocess.run([sys.executable, "-c", f"import {package}"], capture_output=True, text=True, check=False)
    return (run.stderr.strip().splitlines() or ["unknown failure"])[-1] if run.returncode else None


def main():
    """Install the hook where it is needed, and print what was found."""
    import torch

    site = pathlib.Path(sysconfig.get_paths()["purelib"])
    for old in site.glob(f"{NAME}.p*"):  # left by an earlier version
        old.unlink()
    failures = {package: _failure(package) for package in PACKAGES}
    broken = {package: why for package, why in failures.items() if why}
    if not broken:
        sys.stdout.write("cpu_torch: torchvision and torchaudio work; nothing to do\n")
        return
    if torch.version.cuda is not None:
        sys.exit(f"cpu_torch: {broken}, but torch has CUDA: install versions that match torch {torch.__version__}")
    (site / f"{NAME}.py").write_text(pathlib.Path(__file__).read_text(encoding="utf-8"), encoding="utf-8")
    (site / f"{NAME}.pth").write_text(f"import {NAME}; {NAME}.activate()\n", encoding="utf-8")
    still = {package: why for package in PACKAGES if (why := _failure(package))}
    if still:
        sys.exit(f"cpu_torch: the hook did not help: {still}")
    sys.stdout.write(f"cpu_torch: torch is CPU-only; installed a hook so that {' and '.join(broken)} import\n")


if __name__ == "__main__":
    main()
