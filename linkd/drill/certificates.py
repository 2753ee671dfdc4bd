"""A throw-away authority, and certificates of the hub that end when a drill wants them to."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from linkd import clock
from linkd.net import issuing
from linkd.net.issuing import Issuer, Subject, Validity

_AUTHORITY_BACK_SECONDS: Final = 3600.0
_AUTHORITY_SECONDS: Final = 86_400.0
_LEAF_BACK_SECONDS: Final = 600.0


class Authority:
    """An authority with a certificate of one day.

    Attributes:
        file: Its certificate, PEM.
    """

    def __init__(self, directory: Path) -> None:
        key = issuing.make_key()
        validity = Validity.around(clock.wall(), _AUTHORITY_BACK_SECONDS, _AUTHORITY_SECONDS)
        self._issuer = Issuer(issuing.make_authority(key, "linkd drill", validity), key)
        self._directory = directory
        self.file = directory / "ca.crt"
        self.file.write_bytes(issuing.pem(self._issuer.certificate))

    def issue(self, address: str, seconds: float) -> tuple[Path, Path]:
        """Write a certificate of a listener and its key, `hub.crt` and `hub.key`.

        Args:
            address: The IP address it is for.
            seconds: How long it is valid from now.

        Returns:
            The paths of the two files, which replace those written before.
        """
        key = issuing.make_key()
        subject = Subject("hub", [issuing.general_name(address)], key.public_key())
        validity = Validity.around(clock.wall(), _LEAF_BACK_SECONDS, seconds)
        certificate = issuing.issue(self._issuer, subject, issuing.FOR_LISTENING, validity)
        files = self._directory / "hub.crt", self._directory / "hub.key"
        files[1].touch(0o600)
        files[1].write_bytes(issuing.key_pem(key))
        files[0].write_bytes(issuing.pem(certificate))
        return files
