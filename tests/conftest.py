"""What holds for all tests."""

import signal

# Some tests send Ctrl-C to programs that they start. A shell that runs the tests in the background has it ignored, and
# programs inherit that.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
