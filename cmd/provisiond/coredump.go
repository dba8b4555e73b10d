package main

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// noCoreDumps keeps the memory of this process, with the secrets in it, from the disk
// and from other processes of the same user. A core dump needs both a size limit and a
// process that is dumpable: a handler such as systemd-coredump ignores the limit. The
// price: only root can attach a debugger, or read /proc/PID/environ.
func noCoreDumps() error {
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return fmt.Errorf("switching core dumps off: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("switching core dumps off: %w", err)
	}
	return nil
}
