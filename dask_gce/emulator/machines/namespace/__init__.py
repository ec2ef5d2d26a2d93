"""Machines of kind ``namespace``: real operating systems that share the host's kernel.

This package owns the emulator's side (:mod:`kind`, :mod:`machine`, :mod:`vpc_process`); what runs
in the namespaces is in :mod:`vpc`.
"""
