"""What the routes return, as plain dictionaries: maps travel as the float32 numbers that the network used."""

import base64
import io
from typing import Any

import numpy as np

from heedmap.apps.explorer.gallery import GalleryImage, ImageSource
from heedmap.apps.explorer.network import LEARNED, Network, QueryResult
from heedmap.attribution import METHODS
from heedmap.files import printable
from heedmap.inference.torch_predictor import why_no_query
from heedmap.types import AttentionMap


# Each ``*_facts`` returns what the page needs to know of one thing.


def run_facts(network: Network) -> dict[str, Any]:
    """Return a run, before its first prediction."""
    classifier = network.classifier
    return {
        "name": network.name,
        "classes": classifier.classes,
        "attention": f"{classifier.attention_name}, {classifier.attention_weights}",
        "model": network.run.architecture.model,
        "image_size": network.image_size,
        "uses_query": classifier.uses_query,
        "query_note": "" if classifier.uses_query else why_no_query(classifier),
    }


def source_facts(source: ImageSource) -> dict[str, Any]:
    """Return a source of images."""
    return {
        "title": printable(source.title),
        "names": list(map(printable, source.names)),
        "labels": [printable(label) for label in source.labels],
        "notes": list(map(printable, source.notes)),
    }


def method_facts() -> list[dict[str, str]]:
    """Return the methods; learned attention comes first."""
    return [
        {"key": key, "sentence": METHODS[key].sentence, "cost": METHODS[key].cost, "warning": METHODS[key].warning}
        for key in sorted(METHODS, key=lambda key: key != LEARNED)
    ]


def prediction_facts(network: Network, result: QueryResult) -> dict[str, Any]:
    """Return a prediction; probabilities in the order of the run's classes."""
    prediction = result.prediction
    maps = [_map_facts(drawn, "map") for drawn in prediction.maps.values()]
    maps += [_map_facts(drawn, "features") for drawn in prediction.features.values()]
    return {
        "run": network.name,
        "probabilities": [float(share) for share in prediction.probabilities],
        "predicted": prediction.predicted,
        "maps": maps,
        "note": result.note,
        "query_box": result.box,
        "follows_query": result.follows,
        "seconds": result.seconds,
    }


def _map_facts(drawn: AttentionMap, kind: str) -> dict[str, Any]:
    """Return a map: ``values`` are float32, little-endian, row by row, in base64; nothing is rescaled.

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


def npz(network: Network, image: GalleryImage, result: QueryResult) -> bytes:
    """Return the raw maps and probabilities as an ``.npz`` file, named as ``heedmap visualize`` names them."""
    arrays = result.prediction.packed()
    arrays |= {"predicted": np.array(result.prediction.predicted), "classes": np.array(network.classifier.classes)}
    arrays |= {"image": np.array(image.name), "run": np.array(network.name), "query": np.array(result.note)}
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)  # type: ignore[arg-type]  # numpy takes no array named allow_pickle
    return content.getvalue()
