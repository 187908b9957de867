"""What deployment needs: photographs to boxes with numpy, Pillow and onnxruntime alone, without torch.

    from cvpeft.runtime.onnx_detector import Detector

    detections = Detector("model.onnx")(["street.jpg"])

`python -m cvpeft.runtime model.onnx photos/ --out found` writes pictures, COCO json, CSV and GeoJSON.
"""
