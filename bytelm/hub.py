"""Whether the Hugging Face hub can be reached: asked once and briefly, for its client tries again for half a minute.

Where the hub is out of reach its client is told so, and reads what it has in its cache.
"""

import functools
import os
import socket
import sys
import threading
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Final

_ENDPOINT: Final = "https://huggingface.co"
_WAIT_S: Final = 2.0
_PORTS: Final = {"http": 80, "https": 443}
_OFFLINE: Final = "HF_HUB_OFFLINE"


def out_of_reach(data_set: str) -> str:
    """Why a data set cannot be had, for a message; empty where it may be: the hub answers, or a cache knows it.

    Args:
        data_set: Its name on the hub, or the path of a local one.
    """
    if Path(data_set).exists():
        return ""
    endpoint = os.environ.get("HF_ENDPOINT") or _ENDPOINT
    reason = unreachable(endpoint)
    if not reason:
        return ""
    # The first for a client that is still to be imported, here or in a process that is started; then for this one's.
    os.environ.setdefault(_OFFLINE, "1")
    for module in ("huggingface_hub.constants", "datasets.config"):
        if module in sys.modules:
            setattr(sys.modules[module], _OFFLINE, True)
    if _is_cached(data_set):
        return ""
    host = urllib.parse.urlsplit(endpoint).hostname or endpoint
    return f"{data_set} is in no cache here, and {host} cannot be reached ({reason})"


@functools.cache
def unreachable(endpoint: str) -> str:
    """Why nobody answers at an address, or at the proxy that leads there; empty where somebody does.

    Args:
        endpoint: An address of http or https.
    """
    parts = urllib.parse.urlsplit(endpoint)
    proxy = urllib.request.getproxies().get(parts.scheme)
    if proxy and not urllib.request.proxy_bypass(parts.hostname or ""):
        parts = urllib.parse.urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    said = ["no answer"]

    def ask() -> None:
        try:
            with socket.create_connection((parts.hostname, parts.port or _PORTS.get(parts.scheme, 443)), _WAIT_S):
                said[0] = ""
        except (OSError, ValueError) as error:
            said[0] = (getattr(error, "strerror", None) or str(error) or said[0]).lower()

    asking = threading.Thread(target=ask, daemon=True)  # a name server that does not answer would take far longer
    asking.start()
    asking.join(_WAIT_S)
    return said[0]


def _is_cached(data_set: str) -> bool:
    """Whether the client's caches have a folder of the data set."""
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    folders = (
        Path(os.environ.get("HF_DATASETS_CACHE") or home / "datasets"),
        Path(os.environ.get("HF_HUB_CACHE") or home / "hub"),
    )
    wanted = {data_set.replace("/", "___").lower(), f"datasets--{data_set.replace('/', '--')}".lower()}
    return any(path.name.lower() in wanted for folder in folders if folder.is_dir() for path in folder.iterdir())
