"""Answer images over HTTP: python service.py student.int8.onnx 8000; curl --data-binary @x.jpg localhost:8000"""

import io
import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
metadata = session.get_modelmeta().custom_metadata_map
classes, about = json.loads(metadata["classes"]), json.loads(metadata["preprocessing"])
steps, mean, std = about["image"], np.float32(about["mean"]), np.float32(about["std"])
(height, width), scaled = steps["size"], steps["scaled"][0]
assert (steps["resize"], height) == ("center", width), "the code in report.html shows how this file is fed"


def answer(content):
    """Return the class of an encoded image and its probability."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    if image.mode.startswith("I;16"):  # grey of 16 bits
        image = Image.fromarray(((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8))
    size = [scaled if side == min(image.size) else int(scaled * side / min(image.size)) for side in image.size]
    image = image.convert(steps["color_mode"]).resize(size, Image.Resampling[steps["interpolation"].upper()])
    left, top = round((size[0] - width) / 2), round((size[1] - height) / 2)
    pixels = np.asarray(image.crop((left, top, left + width, top + height)), np.float32).reshape(height, width, -1)
    logits = session.run(["logits"], {"inputs": ((pixels / 255 - mean) / std).transpose(2, 0, 1)[None]})[0][0]
    odds = np.exp(logits - logits.max())
    return {"class": classes[int(odds.argmax())], "probability": float(odds.max() / odds.sum())}


class Service(BaseHTTPRequestHandler):
    def do_POST(self):
        try:
            status, said = 200, answer(self.rfile.read(int(self.headers["Content-Length"])))
        except (OSError, ValueError) as error:
            status, said = 400, {"error": str(error)}
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(said).encode())


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[2])), Service).serve_forever()
