"""Makes the torchvision wheel of PyPI importable beside a CPU build of torch. For test environments only.

That wheel's compiled part needs CUDA libraries, so its operators never register, and `import torchvision` then fails
at the first fake kernel that it attaches to one (`operator torchvision::nms does not exist`). Declaring the two
operators that it attaches to is enough for the rest, which is plain Python. The operators themselves don't work.

make_venv.sh puts this file into site-packages with a `.pth` line that imports it: an import hook, and no more, is set
at start-up; nothing is imported before somebody imports torchvision.
"""

import importlib.abc
import importlib.machinery
import sys

_declared = []


def _declare():
    import torch

    if _declared or torch.version.cuda is not None:
        return
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _declared.append(library)  # the declarations live as long as this object


class _Hook(importlib.abc.MetaPathFinder):
    def find_spec(self, fullname, path=None, target=None):
        if fullname != "torchvision":
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.loader is None:
            return spec
        run = spec.loader.exec_module

        def declare_and_run(module):
            _declare()
            run(module)

        spec.loader.exec_module = declare_and_run
        return spec


sys.meta_path.insert(0, _Hook())
