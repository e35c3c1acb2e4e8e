"""What runs on the device: NumPy, OpenCV, and ONNX Runtime or TensorRT, never PyTorch. Ships as `duskfuse_runtime`."""
