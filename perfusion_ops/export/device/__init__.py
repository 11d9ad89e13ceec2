"""A base model and its concepts for devices without PyTorch: ONNX graphs, small concept files, and a host script."""
