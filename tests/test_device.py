"""A device is what it is called, or refused with the reason."""

import pytest
import torch

from bytelm.device import choose_decoding_threads, choose_device
from bytelm.errors import ConfigError


def test_auto_takes_cuda_where_there_is_one() -> None:
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("name", ["nothing", "cpu:x", "" if torch.cuda.is_available() else "cuda"])
def test_a_device_that_is_not_here_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be used here") as caught:
        choose_device(name)
    assert "\n" not in str(caught.value)


def test_a_small_model_decodes_on_one_thread_and_a_large_one_on_all() -> None:
    assert choose_decoding_threads(1_000_000) == 1
    assert choose_decoding_threads(1_000_000_000) == torch.get_num_threads()
