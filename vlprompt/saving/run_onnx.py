"""Classify photos with an exported learner, without torch: python run_onnx.py learner.onnx photo.jpg …

It needs onnxruntime, numpy and pillow; class names and preprocessing are in the file's metadata.
"""

import json
import sys
from typing import Any

import numpy as np
from PIL import Image, ImageOps


def prepare(image: Image.Image, facts: dict[str, Any]) -> Any:
    """Preprocess an image: (1, 3, S, S) float32."""
    size, (width, height), mode = facts["image_size"], image.size, facts["resize_mode"]
    if mode == "shortest":
        width, height = (int(size * side / min(image.size)) for side in image.size)
    elif mode == "longest":
        width, height = (round(side / (max(image.size) / size)) for side in image.size)
    else:
        width, height = size, size
    image = image.resize((width, height), Image.Resampling[facts["interpolation"].upper()])
    left, top = (round((side - size) / 2) if side > size else int((side - size) / 2) for side in image.size)
    pixels = np.asarray(image.crop((left, top, left + size, top + size)), np.float32) / 255  # black outside
    return ((pixels - np.float32(facts["mean"])) / np.float32(facts["std"])).transpose(2, 0, 1)[None]


def main(model: str, *photos: str) -> None:
    """Print the most likely class of each photo and its probability; ``unsure`` below the learner's threshold."""
    import onnxruntime

    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    facts = {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}
    for photo in photos:
        image = ImageOps.exif_transpose(Image.open(photo)).convert("RGB")
        logits = session.run(["logits"], {"images": prepare(image, facts)})[0][0] / facts["temperature"]
        odds = np.exp(logits - logits.max())
        best, probability = odds.argmax(), odds.max() / odds.sum()
        sure = probability >= (facts["min_probability"] or 0)
        print(f"{facts['class_names'][best] if sure else 'unsure'}\t{probability:.4f}\t{photo}")


if __name__ == "__main__":
    main(*sys.argv[1:])
