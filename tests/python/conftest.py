"""Makes `import libmoba` work from a checkout; one parameter for the device."""

import pathlib
import sys

import pytest
import torch

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / "python"))
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test with the argument `device` runs on the CPU and on CUDA: `-k cuda` picks the second."""
    if "device" in metafunc.fixturenames:
        no_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
        metafunc.parametrize("device", ["cpu", pytest.param("cuda", marks=no_cuda)], scope="session")


@pytest.fixture(autouse=True)
def _fixed_conditions() -> None:
    torch.manual_seed(0)
    # The problems are small: threads would spend their time waiting for each other on a busy machine.
    torch.set_num_threads(1)
