"""What deployment needs: photographs to boxes with numpy, Pillow and onnxruntime alone, without torch."""
