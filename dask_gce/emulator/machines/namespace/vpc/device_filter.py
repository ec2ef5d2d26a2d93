"""A filter of devices for a control group, where version 1 has its list of devices.

Owns the filter, a program of a few instructions that the kernel runs whenever somebody below the
group opens a device. Making devices is allowed as ever: without being opened they are of no use.

Source: bpf(2), linux/bpf.h,
https://docs.kernel.org/admin-guide/cgroup-v2.html#device-controller
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Iterable

__all__ = ["attach_filter", "encode"]

_BPF = {"x86_64": 321, "aarch64": 280}
_LOAD, _ATTACH = 5, 8
#: BPF_PROG_TYPE_CGROUP_DEVICE and BPF_CGROUP_DEVICE.
_PROGRAM_KIND, _ATTACH_KIND = 15, 6
#: BPF_F_ALLOW_MULTI: groups below may have filters of their own, and theirs only add to this one.
_ALLOW_MORE = 2

_MAKE, _CHARACTER = 1, 2

# Instructions: operation, registers (source << 4 | destination), offset, number.
_LOAD_WORD, _COPY, _AND, _SHIFT = 0x61, 0xBF, 0x57, 0x77
_SET, _JUMP, _IF_EQUAL, _IF_OTHER, _EXIT = 0xB7, 0x05, 0x15, 0x55, 0x95
_INSTRUCTION = struct.Struct("=BBhi")

_libc = ctypes.CDLL(None, use_errno=True)


def encode(devices: Iterable[tuple[int, int | None]]) -> bytes:
    """Return the program that allows some character devices.

    Parameters
    ----------
    devices : iterable of tuple
        Major and minor numbers; None as the minor number means all.

    Returns
    -------
    bytes
        The instructions.

    Examples
    --------
    >>> len(encode([(1, 3), (136, None)])) // 8
    16
    """
    checks: list[tuple[int, int, int | None, int]] = []
    for major, minor in devices:
        checks.append((_IF_OTHER, 4, 1, major))
        checks.append((_JUMP, 0, None, 0) if minor is None else (_IF_EQUAL, 5, None, minor))
    lines: list[tuple[int, int, int | None, int]] = [
        # The kind and the access in one word, then the numbers.
        (_LOAD_WORD, 1 << 4 | 2, 0, 0),
        (_LOAD_WORD, 1 << 4 | 4, 4, 0),
        (_LOAD_WORD, 1 << 4 | 5, 8, 0),
        (_COPY, 2 << 4 | 3, 0, 0),
        (_AND, 2, 0, 0xFFFF),
        (_SHIFT, 3, 0, 16),
        (_IF_EQUAL, 3, None, _MAKE),
        (_IF_OTHER, 2, len(checks), _CHARACTER),
        *checks,
        (_SET, 0, 0, 0),
        (_EXIT, 0, 0, 0),
        (_SET, 0, 0, 1),
        (_EXIT, 0, 0, 0),
    ]
    allow = len(lines) - 2
    return b"".join(
        # Offsets count from the next instruction; those that are missing lead to the last two.
        _INSTRUCTION.pack(
            operation, registers, allow - place - 1 if offset is None else offset, number
        )
        for place, (operation, registers, offset, number) in enumerate(lines)
    )


def attach_filter(folder: str, devices: Iterable[tuple[int, int | None]]) -> None:
    """Let nobody in a control group open other devices; it ends with the group.

    Parameters
    ----------
    folder : str
        The folder of the group, of version 2.
    devices : iterable of tuple
        Major and minor numbers of character devices; None as the minor number means all.

    Raises
    ------
    OSError
        The kernel refused.
    """
    code = encode(devices)
    instructions, licence = ctypes.create_string_buffer(code), ctypes.create_string_buffer(b"MIT")
    where = (ctypes.addressof(instructions), ctypes.addressof(licence))
    program = _call(
        _LOAD, struct.pack("=IIQQ", _PROGRAM_KIND, len(code) // _INSTRUCTION.size, *where)
    )
    try:
        group = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            _call(_ATTACH, struct.pack("=IIII", group, program, _ATTACH_KIND, _ALLOW_MORE))
        finally:
            os.close(group)
    finally:
        os.close(program)


def _call(command: int, attributes: bytes) -> int:
    number = _BPF.get(platform.machine())
    if number is None:
        raise OSError(errno.ENOSYS, f"no filters on the architecture {platform.machine()}")
    # Longer than what is used: the kernel takes the rest for zeros.
    union = ctypes.create_string_buffer(attributes, 128)
    found: int = _libc.syscall(number, command, union, ctypes.c_uint(len(union)))
    if found < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"no filter of devices: {os.strerror(error)}")
    return found
