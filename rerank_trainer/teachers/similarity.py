"""Soft labels without a teacher: how similar each passage is to the query's labelled positives."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer

from rerank_trainer.models.embedder import open_embedder
from rerank_trainer.teachers.teacher import add_weights, read_column

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

EncodeFn = Callable[[list[str]], Any]


class SimilarityTeacher:
    r"""Scores a passage by its similarity to the nearest of the query's positives.

    .. math:: t_k = \max_{j: y_j > 0} \cos(e_k, e_j) + m \, [y_k > 0]

    A passage that says almost what a positive says, and was not labelled, is no longer pushed away as far as one that
    has nothing to do with it: label smoothing that knows the texts. Adapted from ReffAKD (Doshi and Kim, 2024,
    https://arxiv.org/abs/2404.09886), which takes the similarities of classes, from the codes of an autoencoder, as
    soft labels of images, and also raises the true class above the others. Mined negatives are similar to positives
    because they were chosen so, hence the soft labels belong beside the labels, with a small weight: 0.1 or 0.2.

    Args:
        encoder: What makes a vector of each text: a ``SentenceTransformer``, its Hub id or folder, a
            :class:`TfidfEncoder`, or a function from texts to ``(num_texts, width)``.
        margin: :math:`m`, above 0: how far a positive stands at least above every other passage. Cosines are at most 1.
        fingerprint: Of a function: a text that changes whenever its vectors could.

    Raises:
        ValueError: If the margin is not above 0, a function comes without a fingerprint, or another encoder with one.

    >>> vectors = {"2": [1.0, 0.0], "two": [0.8, 0.6], "a fish": [0.0, 1.0]}
    >>> teacher = SimilarityTeacher(lambda texts: [vectors[text] for text in texts], fingerprint="three vectors")
    >>> teacher.score([{"query": "1 + 1", "passages": ["2", "two", "a fish"], "labels": [1, 0, 0]}])
    {'scores': [[1.1, 0.8, 0.0]]}
    """

    scale = "logit"
    columns = ("labels",)

    def __init__(
        self,
        encoder: str | Path | SentenceTransformer | TfidfEncoder | EncodeFn,
        *,
        margin: float = 0.1,
        fingerprint: str | None = None,
    ) -> None:
        if not 0 < margin < np.inf:
            raise ValueError(f"margin={margin}: expected a number above 0, so that no passage equals a positive")
        self.margin = margin
        if isinstance(encoder, str | Path):
            encoder = open_embedder(encoder)
        is_function = not (isinstance(encoder, TfidfEncoder) or hasattr(encoder, "encode_document"))
        if is_function is (fingerprint is None):
            raise ValueError(
                f"fingerprint={fingerprint!r} with {encoder!r}: scores are stored under the name of what made them. "
                "Give a function a fingerprint, a text that changes whenever its vectors could; other encoders have "
                "their own."
            )
        self.encode_fn = encoder if is_function else _encode_fn(encoder)
        own = fingerprint if is_function else _fingerprint(encoder)
        self.fingerprint = f"similarity to positives, margin {margin}, {own}"

    def score(self, groups: Sequence[Mapping[str, Any]]) -> Mapping[str, list[list[float]]]:
        """As :meth:`Teacher.score`; each distinct passage is encoded once.

        Raises:
            ValueError: If a group has no labels, or none above 0.
        """
        for group in groups:
            if not any(label > 0 for label in read_column(group, "labels", self)):
                raise ValueError(
                    f"the group of the query {group['query']!r} has no label above 0, so there is nothing that its "
                    "passages could be similar to. Leave such groups out."
                )
        texts = list(dict.fromkeys(passage for group in groups for passage in group["passages"]))
        codes = np.asarray(self.encode_fn(texts), dtype=np.float64)
        if codes.ndim != 2 or len(codes) != len(texts):
            raise ValueError(f"the encoder returned {codes.shape} for {len(texts)} texts; expected a vector of each")
        lengths = np.linalg.norm(codes, axis=1, keepdims=True)
        codes = codes / np.where(lengths == 0, 1.0, lengths)  # a text that it knows nothing of is like no other
        place = {text: number for number, text in enumerate(texts)}
        return {"scores": [self._scores(codes[[place[p] for p in g["passages"]]], g["labels"]) for g in groups]}

    def _scores(self, codes: NDArray[np.float64], labels: Sequence[float]) -> list[float]:
        positive = np.asarray(labels) > 0
        similarity = (codes @ codes[positive].T).max(axis=1)
        return np.where(positive, 1.0 + self.margin, similarity).tolist()


class TfidfEncoder:
    """Codes of a linear autoencoder of TF-IDF vectors: their truncated singular value decomposition.

    No linear code of this width reconstructs the vectors with a smaller squared error; the same is known as latent
    semantic analysis (https://scikit-learn.org/stable/modules/decomposition.html#lsa). It needs neither model nor GPU,
    and sees words, not meanings: two passages are similar that share words, or words which stand in the same passages
    elsewhere.

    Args:
        passages: Those to learn from, such as ``itertools.chain.from_iterable(groups["passages"])``; each counts once.
        num_components: Width of a code; at most what the passages allow.
        seed: Of the decomposition, which is randomised.

    Raises:
        ValueError: If the passages have fewer than two distinct words of two letters or more.

    >>> encoder = TfidfEncoder(["the sun is a star", "the moon is no star", "bread needs flour"], num_components=2)
    >>> encoder(["a star", "flour"]).shape
    (2, 2)
    """

    def __init__(self, passages: Iterable[str], *, num_components: int = 256, seed: int = 0) -> None:
        texts = sorted(set(passages))
        self.vectorizer = TfidfVectorizer(sublinear_tf=True)
        try:
            vectors = self.vectorizer.fit_transform(texts)
        except ValueError as error:
            raise ValueError(f"TF-IDF needs passages with words, found {texts[:3]} ({error})") from error
        if vectors.shape[1] < 2:
            raise ValueError(f"TF-IDF needs two distinct words or more, found {[*self.vectorizer.vocabulary_]}")
        width = min(num_components, *vectors.shape)
        self.autoencoder = TruncatedSVD(n_components=width, random_state=seed).fit(vectors)
        digest = hashlib.sha256("\0".join(texts).encode())
        self.fingerprint = f"TF-IDF, {width} components, seed {seed}, of {digest.hexdigest()}"

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """The codes of these texts, ``(num_texts, width)``."""
        codes: NDArray[np.float64] = self.autoencoder.transform(self.vectorizer.transform(texts))
        return codes


def _encode_fn(encoder: Any) -> EncodeFn:
    if isinstance(encoder, TfidfEncoder):
        return encoder
    encode: EncodeFn = encoder.encode_document  # with the model's own prompt for passages
    return encode


def _fingerprint(encoder: Any) -> str:
    if isinstance(encoder, TfidfEncoder):
        return encoder.fingerprint
    settings = (
        encoder,
        encoder.prompts,
        encoder.default_prompt_name,
        encoder.max_seq_length,
        encoder.truncate_dim,
        sorted(encoder.tokenizer.get_vocab().items()),
    )
    digest = hashlib.sha256(repr(settings).encode())
    add_weights(digest, encoder)
    return digest.hexdigest()
