"""Models that run without tnet: export to ONNX, OpenVINO and torch.export, and engines that run exported parts."""

from tnet.export.engine import EngineTNet, export_digest, is_export
from tnet.export.runtime import Engine
from tnet.export.write import Exported, Format, export_model

__all__ = ["Engine", "EngineTNet", "Exported", "Format", "export_digest", "export_model", "is_export"]
