"""Download the IXI brain volumes of one modality and unpack them, for `mri-n2n train --dataset ixi`.

IXI (https://brain-development.org/ixi-dataset/) is released under the Creative Commons licence CC BY-SA 3.0.
An interrupted download goes on where it stopped. The size and SHA-256 of the first complete download are recorded in
a JSON file beside the archive; from then on the archive is verified against it.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import json
import shutil
import ssl
import sys
import tarfile
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path, PurePosixPath

from mri_n2n.errors import InputError, NotFoundError, OutputError, UserError

URL = "http://biomedic.doc.ic.ac.uk/brain-development/downloads/IXI/IXI-{modality}.tar"
MODALITIES = ("T1", "T2", "PD", "MRA", "DTI")
CHUNK = 1 << 20
ATTEMPTS = 5


def download(url: str, archive: Path, *, attempts: int = ATTEMPTS, pause: float = 2.0, quiet: bool = False) -> dict:
    """Make `archive` complete and verified; returns its record {url, size, sha256}.

    Unfinished bytes wait in `archive`.part. Errors: NotFoundError when the server cannot be reached or stops answering
    (run again to go on), InputError when the bytes are not those of the record, OutputError when they cannot be stored.
    """
    record_path = archive.with_name(archive.name + ".json")
    record = read_record(record_path)
    part = archive.with_name(archive.name + ".part")
    if archive.exists():
        if record is None:
            raise InputError(
                f"{archive} was not downloaded by this script ({record_path.name} is missing); move it away"
            )
        verify(archive, record, f"{archive} has changed since it was downloaded; delete it and run again")
        return record
    for attempt in range(1, attempts + 1):
        try:
            complete = fetch(url, part, quiet)
        except urllib.error.HTTPError as error:
            raise NotFoundError(f"the server answered {error.code} {error.reason} for {url}; see --url") from None
        except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError) as error:
            complete, reason = False, str(getattr(error, "reason", None) or error)
        else:
            reason = "the connection was closed"
        if complete:
            break
        if attempt == attempts:
            have = part.stat().st_size if part.exists() else 0
            raise NotFoundError(f"{url}: {reason} ({have:,} bytes are kept); run the same command again to go on")
        time.sleep(pause)
    if record is None:
        record = {"url": url, "size": part.stat().st_size, "sha256": sha256(part)}
        write_record(record_path, record)
    else:
        mismatch = (
            f"{url} is not the file recorded in {record_path}; delete {part.name}, and the record to accept a new one"
        )
        verify(part, record, mismatch)
    part.rename(archive)
    part.with_name(part.name + ".json").unlink(missing_ok=True)
    return record


def fetch(url: str, part: Path, quiet: bool) -> bool:
    """Append to `part` what is missing; True when it is complete.

    A resumed transfer asks for the same version of the file (If-Range) and begins anew when the server has another.
    """
    state_path = part.with_name(part.name + ".json")
    state = read_record(state_path) or {}
    have = part.stat().st_size if part.exists() else 0
    if state.get("url") != url or not state.get("version"):
        have = 0  # bytes of unknown origin
    request = urllib.request.Request(url, headers={"Accept-Encoding": "identity"})
    if have:
        request.add_header("Range", f"bytes={have}-")
        request.add_header("If-Range", state["version"])
    try:
        response = urllib.request.urlopen(request, timeout=60)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # nothing is missing, or the file has become shorter
            if have == state.get("size"):
                return True
            part.unlink()
            return fetch(url, part, quiet)
        raise
    with response:
        start, total = transfer_range(response)
        if start not in (0, have):
            raise NotFoundError(f"{url}: asked for bytes from {have}, the server sent bytes from {start}")
        # Weak ETags do not promise equal bytes; then the date of the file has to.
        tag = response.headers.get("ETag", "")
        version = tag if tag.startswith('"') else response.headers.get("Last-Modified")
        write_record(state_path, {"url": url, "version": version, "size": total})
        if total is not None and shutil.disk_usage(part.parent).free < total - start:
            raise OutputError(f"{part.parent} has no room for the {total - start:,} bytes still to come")
        with part.open("r+b" if start else "wb") as file:
            file.seek(start)
            position = start
            while block := response.read(CHUNK):
                file.write(block)
                position += len(block)
                show_progress(position, total, quiet)
            file.truncate()
    if not quiet and sys.stderr.isatty():
        print(file=sys.stderr)
    # Without a declared size the end of the stream is all there is to go by.
    return total is None or position == total


def transfer_range(response: http.client.HTTPResponse) -> tuple[int, int | None]:
    """(first byte, size of the whole file or None) of a 200 or 206 answer."""
    if response.status == 206:
        unit, _, rest = response.headers.get("Content-Range", "").partition(" ")
        span, _, total = rest.partition("/")
        start = span.partition("-")[0]
        if unit != "bytes" or not start.isdigit():
            raise NotFoundError("the server sent a part of the file without saying which; try again later")
        return int(start), int(total) if total.isdigit() else None
    length = response.headers.get("Content-Length", "")
    return 0, int(length) if length.isdigit() else None


def show_progress(position: int, total: int | None, quiet: bool) -> None:
    if not quiet and sys.stderr.isatty():
        share = f" of {total / 1e6:,.0f} MB ({100 * position / total:.0f} %)" if total else " MB"
        print(f"\r{position / 1e6:,.0f}{share}", end="", file=sys.stderr, flush=True)


def read_record(path: Path) -> dict | None:
    """The JSON object in `path`; None when there is no such file."""
    try:
        record = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        record = None
    if not isinstance(record, dict):
        raise InputError(f"{path} is damaged; delete it, and the archive beside it, to begin anew")
    return record


def write_record(path: Path, record: dict) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(record, indent=2) + "\n")
    temporary.replace(path)


def verify(path: Path, record: dict, message: str) -> None:
    """InputError when size or SHA-256 of `path` are not those recorded."""
    if path.stat().st_size != record.get("size") or sha256(path) != record.get("sha256"):
        raise InputError(f"checksum error: {message}")


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def extract(archive: Path, folder: Path) -> tuple[int, int]:
    """Unpack an uncompressed tar into `folder`; returns (files written, files that were there already).

    Refused as a whole, before anything is written: absolute names, '..', links, devices, sparse files, repeated names.
    A file that is there already in its full size is left alone. Each file appears complete or not at all.
    """
    try:
        with tarfile.open(archive, "r:") as tar:
            members = [member for member in tar.getmembers() if not member.isdir()]
            names = [safe_name(member, archive) for member in members]
            if len(set(names)) < len(names):
                raise InputError(f"{archive} holds a name twice; nothing was unpacked")
            written = 0
            for member, name in zip(members, names):
                target = folder / name
                if target.exists() and target.stat().st_size == member.size:
                    continue
                if target.is_symlink() or target.exists():
                    raise OutputError(f"{target} exists and is not the archive's; move it away")
                if not target.parent.resolve().is_relative_to(folder.resolve()):
                    raise OutputError(f"{target.parent} leads out of {folder}; move it away")
                target.parent.mkdir(parents=True, exist_ok=True)
                temporary = target.with_name(f".{target.name}.part")
                with tar.extractfile(member) as source, temporary.open("wb") as file:
                    shutil.copyfileobj(source, file, CHUNK)
                temporary.replace(target)
                written += 1
    except tarfile.TarError as error:
        raise InputError(f"{archive} is no readable tar archive: {error}") from None
    return written, len(members) - written


def safe_name(member: tarfile.TarInfo, archive: Path) -> PurePosixPath:
    """The member's path below the folder it is unpacked into; InputError when it could lead anywhere else."""
    path = PurePosixPath(member.name)
    outside = path.is_absolute() or ".." in path.parts or not path.name
    if outside or any(ord(c) < 32 or c in "\\:" for c in member.name):
        raise InputError(f"{archive} holds the unsafe name {member.name!r}; nothing was unpacked")
    if not member.isfile() or member.issparse():
        raise InputError(f"{archive} holds {member.name!r}, a link or special file; nothing was unpacked")
    return path


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="download_ixi.py",
        description="Download the IXI volumes of one modality and unpack them. IXI is licensed CC BY-SA 3.0 "
        "(https://brain-development.org/ixi-dataset/): give credit, and share what you derive under the same licence. "
        "The T1 archive is several gigabytes; an interrupted download goes on when the command is given again. Size "
        "and SHA-256 of the first complete download are recorded beside the archive, which is verified against them "
        "from then on.",
        epilog="Exit codes: 0 done; 2 wrong usage; 3 bytes that do not fit the record, or a bad archive; 4 cannot "
        "write; 5 server or file not found; 130 interrupted.",
    )
    parser.add_argument(
        "-o", "--output", metavar="DIR", type=Path, default=Path("data/ixi"), help="default: %(default)s"
    )
    parser.add_argument("--modality", choices=MODALITIES, default="T1", help="training reads T1 (default: %(default)s)")
    parser.add_argument("--url", help=f"another address of the archive; default: {URL.format(modality='MODALITY')}")
    parser.add_argument("--no-extract", action="store_true", help="download and verify only")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    return parser


def main(arguments: list[str] | None = None) -> int:
    options = build_parser().parse_args(arguments)
    url = options.url or URL.format(modality=options.modality)
    archive = options.output / f"IXI-{options.modality}.tar"
    try:
        if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
            raise UserError(f"--url must be an http or https address; got {url}")
        options.output.mkdir(parents=True, exist_ok=True)
        record = download(url, archive, quiet=options.quiet)
        print(f"{archive}: {record['size']:,} bytes, SHA-256 {record['sha256']}, verified")
        if not options.no_extract:
            written, present = extract(archive, options.output)
            print(f"{options.output}: {written} files unpacked, {present} were there already")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"error: cannot write to {options.output}: {error.strerror or error}", file=sys.stderr)
        return OutputError.exit_code
    except KeyboardInterrupt:
        print("interrupted; give the same command again to go on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
