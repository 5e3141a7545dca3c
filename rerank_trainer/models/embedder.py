"""Embedding models of sentence-transformers, opened by name with the same care as rerankers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rerank_trainer.models.peers import stored_json
from rerank_trainer.models.weight_files import pickles_refused, refuse_pickled_module

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


def open_embedder(name: str | Path) -> SentenceTransformer:
    """The embedding model of a Hub id or folder, from safetensors alone.

    Raises:
        ValueError: If its weights, or those of one of its modules, are pickled.
    """
    # here, because it takes seconds that others need not pay
    from sentence_transformers import SentenceTransformer

    modules = stored_json(str(name), "modules.json", {})
    for path in (module["path"] for module in modules or () if module["path"]):
        refuse_pickled_module(str(name), path, hub={})
    with pickles_refused(str(name), config=None, allow_pickle=False, hub={}):
        return SentenceTransformer(str(name), model_kwargs={"use_safetensors": True})
