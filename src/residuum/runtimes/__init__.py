"""How a converted network is run by ONNX Runtime (`onnx.py`) and OpenVINO (`openvino.py`): tensors in, a tensor out."""
