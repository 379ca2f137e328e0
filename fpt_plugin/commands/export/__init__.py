"""Write backbone and neck as ONNX or as a torch.export program."""
