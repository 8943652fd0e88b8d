"""What files have in common that are read at a position of their own: of a known size, and without asking anybody."""

import io


class Positioned(io.RawIOBase):
    """A file of so many bytes; those that inherit it say what `read` gives, and move the position past that."""

    def __init__(self, size: int):
        super().__init__()
        self._size = size
        self._position = 0

    def readable(self) -> bool:
        """Whether `read` will do."""
        return True

    def seekable(self) -> bool:
        """Whether `seek` will do."""
        return True

    def tell(self) -> int:
        """The position, in bytes."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Moves the position."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def _wanted(self, size: int) -> int:
        """How many bytes a read of so many, or of all, is to give."""
        left = max(0, self._size - self._position)
        return left if size < 0 else min(size, left)
