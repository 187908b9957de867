"""Detector -> ONNX that is proven to give the same boxes."""
