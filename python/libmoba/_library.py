"""Finds and loads libmoba_torch.so, which registers the operators `torch.ops.moba.*`."""

import glob
import os
import pathlib

import torch

_NAME = "libmoba_torch.so"


def _candidates() -> list[pathlib.Path]:
    here = pathlib.Path(__file__).resolve().parent
    if os.environ.get("MOBA_TORCH_LIBRARY"):
        return [pathlib.Path(os.environ["MOBA_TORCH_LIBRARY"])]
    repository = here.parents[1]
    builds = [pathlib.Path(path) for path in glob.glob(str(repository / "build*" / _NAME))]
    # The folder `build` first, then whatever was built last.
    builds.sort(key=lambda path: (path.parent.name != "build", -path.stat().st_mtime))
    return [here / _NAME, *builds]


def load() -> str:
    """Loads the library and returns its path. ImportError says what to run where there is none."""
    candidates = _candidates()
    for path in candidates:
        if path.is_file():
            torch.ops.load_library(str(path))
            return str(path)
    looked = ", ".join(str(path) for path in candidates)
    raise ImportError(
        f"libmoba needs {_NAME}; it was looked for at {looked} and in the build folders of the repository. "
        "Run `make build` in the repository, or set MOBA_TORCH_LIBRARY to the file."
    )
