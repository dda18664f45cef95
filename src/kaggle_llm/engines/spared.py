"""transformers without scikit-learn, scipy and pandas, which it loads for assisted decoding and object detection only.

They are a quarter of what a process computes until its first prompt, and 140 MB of its memory; every worker pays.
"""

from __future__ import annotations

SPARED = ("is_sklearn_available", "is_scipy_available")


def spare_sklearn() -> None:
    """Import what all of transformers' models import, as if scikit-learn and scipy were not installed.

    Call it before the first import of a model's or a tokenizer's class. Both packages stay there for all others.
    """
    from transformers import utils

    before = {name: getattr(utils, name) for name in SPARED}
    vars(utils).update(dict.fromkeys(SPARED, lambda: False))
    try:
        import transformers.generation.utils
        import transformers.modeling_utils  # noqa: F401
    finally:
        vars(utils).update(before)
