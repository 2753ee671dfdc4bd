"""Compression of batches on the wire, where `compress = true` and zstandard is installed."""

from __future__ import annotations

from collections.abc import Callable

try:
    import zstandard
except ImportError:  # an extra: `pip install linkd[compress]`
    pack: Callable[[bytes], bytes] | None = None
    unpack: Callable[[bytes, int], bytes] | None = None
else:
    _packer = zstandard.ZstdCompressor(level=3)
    _unpacker = zstandard.ZstdDecompressor()

    def _pack(records: bytes) -> bytes:
        """Compress one batch; its size stands in the frame."""
        return _packer.compress(records)

    def _unpack(packed: bytes, max_bytes: int) -> bytes:
        """Decompress one batch of at most `max_bytes`.

        Raises:
            ValueError: It is malformed, or larger.
        """
        try:
            size = zstandard.frame_content_size(packed)
            if not 0 <= size <= max_bytes:
                raise ValueError(f"{size} bytes once unpacked, expected at most {max_bytes}")
            return _unpacker.decompress(packed, max_output_size=max_bytes)
        except zstandard.ZstdError as error:
            raise ValueError(str(error)) from None

    pack = _pack
    unpack = _unpack
