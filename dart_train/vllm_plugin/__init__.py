"""vLLM serves a checkpoint with its reduction: `pip install --no-deps dart-train` next to vLLM, `vllm serve exported`.

vLLM calls `register` in each of its processes. A model folder with a reducer.json is then served by the classes of this
package, with fewer visual tokens in prefill and in the KV cache; every other model is served as before.

This package runs in vLLM's environment, whose transformers is older than the one dart_train trains with. Of dart_train
it imports `reduction` only, which needs torch and numpy alone.
"""

from __future__ import annotations


def register() -> None:
    """The entry point `vllm.general_plugins`; it may be called several times."""
    from .vllm_compat import install

    install()
