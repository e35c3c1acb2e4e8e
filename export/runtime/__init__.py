"""What runs on the device; needs NumPy, OpenCV and ONNX Runtime only."""
