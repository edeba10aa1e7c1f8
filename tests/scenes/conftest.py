from tests.scenes.fakes import shelf

__all__ = ["shelf"]
