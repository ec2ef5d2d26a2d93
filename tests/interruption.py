"""Programs that hear Ctrl-C whenever it comes.

Owns what a program of a test begins with that is to be interrupted once. Python prints and forgets
an exception that is raised in a finalizer, and Ctrl-C may come in one. Whoever sits at the keyboard
presses it again; here the program does so itself.
"""

from __future__ import annotations

HEARS = """
import signal, sys, threading
def hear(ignored):
    sys.__unraisablehook__(ignored)
    if ignored.exc_type is KeyboardInterrupt:
        # A moment later: whatever is raised in here is ignored as well.
        main = threading.main_thread().ident
        again = threading.Timer(0.05, signal.pthread_kill, (main, signal.SIGINT))
        again.daemon = True
        again.start()
sys.unraisablehook = hear
"""
