"""Makes the torchvision wheel of PyPI importable beside a CPU build of torch. For test environments only.

That wheel's compiled part needs CUDA libraries, so its operators never register, and `import torchvision` then fails
at the first fake kernel that it attaches to one (`operator torchvision::nms does not exist`). Declaring the two
operators that it attaches to is enough for the rest, which is plain Python. The operators themselves don't work;
pictures, which it would decode in its compiled part, are decoded by Pillow.

make_venv.sh puts this file into site-packages with a `.pth` line that imports it: an import hook, and no more, is set
at start-up; nothing is imported before somebody imports torchvision.
"""

import importlib.abc
import importlib.machinery
import sys

_declared = []


def _declare(module):
    import torch

    if _declared or torch.version.cuda is not None:
        return
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _declared.append(library)  # the declarations live as long as this object


def _decode_with_pillow(module):
    import torch

    if torch.version.cuda is None:
        module.decode_image = _decode_image


def _decode_image(input, mode=None, apply_exif_orientation=False):
    """As torchvision.io.decode_image: a file name or a tensor of bytes to a uint8 tensor (3, height, width)."""
    import io

    import numpy
    import torch
    from PIL import Image, ImageOps

    picture = Image.open(io.BytesIO(bytes(input.tolist())) if isinstance(input, torch.Tensor) else input)
    if apply_exif_orientation:
        picture = ImageOps.exif_transpose(picture)
    return torch.from_numpy(numpy.array(picture.convert("RGB"))).permute(2, 0, 1).contiguous()


_BEFORE = {"torchvision": _declare}
_AFTER = {"torchvision.io": _decode_with_pillow}


class _Hook(importlib.abc.MetaPathFinder):
    def find_spec(self, fullname, path=None, target=None):
        if fullname not in _BEFORE and fullname not in _AFTER:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.loader is None:
            return spec
        run = spec.loader.exec_module

        def exec_module(module):
            _BEFORE.get(fullname, lambda _: None)(module)
            run(module)
            _AFTER.get(fullname, lambda _: None)(module)

        spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, _Hook())
