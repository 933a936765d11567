"""The encoding that an ISMRMRD XML header describes: of MRD files, and of fastMRI's, which carry it as a text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from mri_n2n.errors import InputError
from mri_n2n.files import one_line


@dataclass(frozen=True)
class Encoding:
    """What the XML header says of the (first) encoding. Sizes are (readout, phase)."""

    matrix: tuple[int, int]
    field_of_view: tuple[float, float, float]  # mm: readout and phase as encoded, slice
    recon_matrix: tuple[int, int]
    recon_field_of_view: tuple[float, float]
    phase_center: int
    phase_maximum: int
    calibration: str
    trajectory: str
    partitions: int
    user_parameters: dict[str, str]  # as text, whatever their type

    @property
    def acquired_lines(self) -> tuple[int, int]:
        """The phase-encoded lines of the matrix that were measured or left out on purpose, half-open; the rest is padding."""
        first = self.matrix[1] // 2 - self.phase_center
        return max(first, 0), min(first + self.phase_maximum + 1, self.matrix[1])


def read_encoding(text: bytes | str, path: Path, *, voxel: float | None = None) -> Encoding:
    """Read an XML header by local names, whatever its name space. voxel: the size in mm to assume where a header has no
    fields of view; None: it must have them. Errors: InputError; entities are refused."""
    text = text if isinstance(text, bytes) else str(text).encode()
    # A zero byte: UTF-16, in which the words would not be found.
    if len(text) > 2**20 or any(word in text for word in (b"<!DOCTYPE", b"<!ENTITY", b"\0")):
        raise InputError(f"{one_line(path)}: its XML header declares entities or is far too long; refused")
    try:
        root = ElementTree.fromstring(text)
    except (ElementTree.ParseError, LookupError, ValueError) as error:  # also: an encoding that is none of a text
        raise InputError(f"{one_line(path)}: its XML header cannot be read ({one_line(error)})") from None

    def value(where: str, kind: type, default: object = None):
        node = root
        for step in where.split("/"):
            node = next((child for child in node if child.tag.rpartition("}")[2] == step), None)
            if node is None:
                if default is not None:
                    return default
                raise InputError(f"{one_line(path)}: its XML header lacks {where}")
        try:
            return kind((node.text or "").strip())
        except ValueError:
            raise InputError(f"{one_line(path)}: {where} in its XML header is {node.text!r:.40}") from None

    sizes = lambda what, names, kind: tuple(value(f"encoding/{what}/{name}", kind) for name in names)  # noqa: E731
    fields = lambda space, names, matrix: tuple(  # noqa: E731
        value(f"encoding/{space}/fieldOfView_mm/{name}", float, None if voxel is None else voxel * n)
        for name, n in zip(names, matrix, strict=True)
    )
    matrix, recon_matrix = (sizes(f"{space}/matrixSize", "xy", int) for space in ("encodedSpace", "reconSpace"))
    encoding = Encoding(
        matrix,
        fields("encodedSpace", "xyz", (*matrix, 1)),
        recon_matrix,
        fields("reconSpace", "xy", recon_matrix),
        value("encoding/encodingLimits/kspace_encoding_step_1/center", int, matrix[1] // 2),
        value("encoding/encodingLimits/kspace_encoding_step_1/maximum", int, matrix[1] - 1),
        value("encoding/parallelImaging/calibrationMode", str, "none"),
        value("encoding/trajectory", str),
        value("encoding/encodedSpace/matrixSize/z", int, 1),
        _user_parameters(root),
    )
    possible = all(0 < n < 2**15 for n in (*matrix, *encoding.recon_matrix))
    possible &= all(0 < mm < 1e5 for mm in (*encoding.field_of_view, *encoding.recon_field_of_view))
    if not (possible and 0.99 < encoding.field_of_view[0] / encoding.recon_field_of_view[0] < 16):
        raise InputError(
            f"{one_line(path)}: the sizes in its XML header make no sense ({matrix}, {encoding.field_of_view} mm)"
        )
    return encoding


def _user_parameters(root: ElementTree.Element) -> dict[str, str]:
    local = lambda node: node.tag.rpartition("}")[2]  # noqa: E731
    groups = [node for node in root if local(node) == "userParameters"]
    pairs = [{local(child): child.text or "" for child in entry} for group in groups for entry in group]
    return {pair["name"].strip(): pair["value"].strip() for pair in pairs if {"name", "value"} <= set(pair)}
