"""Compression of batches on the wire."""

from __future__ import annotations

import zstandard

_packer = zstandard.ZstdCompressor(level=3)
_unpacker = zstandard.ZstdDecompressor()


def pack(records: bytes) -> bytes:
    """Compress one batch; its size is in the frame."""
    return _packer.compress(records)


def unpack(packed: bytes, max_bytes: int) -> bytes:
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
