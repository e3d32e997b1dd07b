"""What the page is told, as plain dictionaries: maps travel as the float32 numbers that the network used."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np

from heedmap.apps.explorer.asking import Network, Reply
from heedmap.apps.explorer.gallery import Seen
from heedmap.inference.torch_predictor import why_no_query
from heedmap.types import AttentionMap


def network_facts(network: Network) -> dict[str, Any]:
    """What the page has to know of a run before it asks."""
    classifier = network.classifier
    return {
        "name": network.name,
        "classes": classifier.classes,
        "attention": f"{classifier.attention_name}, {classifier.attention_weights}",
        "model": network.run.architecture.model,
        "image_size": network.image_size,
        "uses_query": classifier.uses_query,
        "no_query": "" if classifier.uses_query else why_no_query(classifier),
        "is_control": classifier.attention_name == "none",
    }


def reply_facts(network: Network, reply: Reply) -> dict[str, Any]:
    """A reply for the page; probabilities in the order of the run's classes."""
    answer = reply.answer
    maps = [map_facts(drawn, "map") for drawn in answer.maps.values()]
    maps += [map_facts(drawn, "features") for drawn in answer.features.values()]
    return {
        "run": network.name,
        "probabilities": [float(share) for share in answer.probabilities],
        "predicted": answer.predicted,
        "maps": maps,
        "said": reply.said,
        "box": reply.box,
        "follows": reply.follows,
        "seconds": reply.seconds,
    }


def map_facts(drawn: AttentionMap, kind: str) -> dict[str, Any]:
    """A map: ``values`` are float32, little-endian, row by row, in base64; nothing is rescaled.

    ``kind`` is ``map`` (drawn over the image) or ``features`` (drawn alone).
    """
    values = np.asarray(drawn.values)
    height, width = values.shape
    return {
        "name": drawn.tap,
        "kind": kind,
        "method": drawn.method,
        "target": drawn.target,
        "height": height,
        "width": width,
        "low": drawn.low,
        "high": drawn.high if drawn.high > drawn.low else drawn.low + 1.0,  # a map of zeros is drawn cold
        "values": base64.b64encode(np.ascontiguousarray(values, "<f4").tobytes()).decode("ascii"),
    }


def npz(network: Network, seen: Seen, reply: Reply) -> bytes:
    """The raw maps and probabilities as an ``.npz`` file, named as ``heedmap visualize`` names them."""
    arrays = reply.answer.packed()
    arrays |= {"predicted": np.array(reply.answer.predicted), "classes": np.array(network.classifier.classes)}
    arrays |= {"image": np.array(seen.name), "run": np.array(network.name), "query": np.array(reply.said)}
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)  # type: ignore[arg-type]  # numpy takes no array named allow_pickle
    return content.getvalue()
