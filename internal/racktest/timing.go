package racktest

import (
	"context"
	"math/rand/v2"
	"time"
)

// Timing holds every duration of a simulated machine. The fields of one kind
// keep their proportions in [RealTiming] and [FastTiming]; a zero field means
// no wait, or no limit where it is a timeout.
type Timing struct {
	// Retransmit is the first retransmission time of a DHCPv6 exchange; it
	// doubles up to RetransmitMax (RFC 8415 section 15).
	Retransmit, RetransmitMax time.Duration
	// Collect is how long firmware gathers Advertises unless one has preference
	// 255 (EDK2: 4 to 5 s).
	Collect time.Duration
	// Tries is how many times firmware and iPXE send a message before they go
	// on to the next boot option (EDK2: 4, about 60 s).
	Tries int
	// DHCPv4 is how long iPXE's autoboot waits for the DHCPv4 answer that does
	// not come on an IPv6-only network (17 s).
	DHCPv4 time.Duration
	// BootRetry is the pause before the boot manager starts over.
	BootRetry time.Duration
	// TFTP is the retransmission timeout of the firmware's TFTP client, and
	// TFTPTries how often it sends a packet before it gives up.
	TFTP      time.Duration
	TFTPTries int
	// HTTP limits one transfer of a loader, script or image.
	HTTP time.Duration
	// ScriptSecond is how long an iPXE script's `sleep 1` takes.
	ScriptSecond time.Duration

	// Kernel is the time from the kernel's start to Talos' config phase.
	Kernel time.Duration
	// ConfigUnit is the unit of the waits between failed config downloads:
	// (2^n-1) units and up to one more, without a cap (Talos: 1 s).
	ConfigUnit time.Duration
	// ConfigAttempt limits one try at the config (Talos: 180 s).
	ConfigAttempt time.Duration
	// Backoff and BackoffMax are those of Talos' controllers, which restart
	// with 1.5 times the wait, give or take a half (0.5 s, 60 s).
	Backoff, BackoffMax time.Duration
	// Install is how long the installer runs; Kexec what follows it.
	Install, Kexec time.Duration

	// API, CRI and TimeSync are the times from a complete config to apid, cri
	// and a synchronised clock; Kubelet follows CRI.
	API, CRI, TimeSync, Kubelet time.Duration
	// TimeWait is how long Bootstrap waits for the clock (Talos: 5 s).
	TimeWait time.Duration
	// EtcdPull is the image pull that every accepted Bootstrap starts anew;
	// EtcdStart the time from there to a healthy member.
	EtcdPull, EtcdStart time.Duration
	// Stop is how long a reset takes to the end of the API, and then again how
	// long that may take; Reset the time from there to the wiped disk (28 s in
	// all were seen).
	Stop, Reset time.Duration
	// Poll is the interval at which nodes look for their control plane.
	Poll time.Duration
}

// RealTiming is what was measured on hardware-like guests.
func RealTiming() Timing {
	return Timing{
		Retransmit: time.Second, RetransmitMax: 30 * time.Second, Collect: 4500 * time.Millisecond, Tries: 4,
		DHCPv4: 17 * time.Second, BootRetry: 5 * time.Second,
		TFTP: 4 * time.Second, TFTPTries: 6, HTTP: 5 * time.Minute, ScriptSecond: time.Second,
		Kernel: 10 * time.Second, ConfigUnit: time.Second, ConfigAttempt: 3 * time.Minute,
		Backoff: 500 * time.Millisecond, BackoffMax: time.Minute,
		Install: time.Minute, Kexec: 10 * time.Second,
		API: 4 * time.Second, CRI: 10 * time.Second, TimeSync: 5 * time.Second, Kubelet: 15 * time.Second, TimeWait: 5 * time.Second,
		EtcdPull: 30 * time.Second, EtcdStart: 10 * time.Second, Poll: 5 * time.Second,
		Stop: 3 * time.Second, Reset: 22 * time.Second,
	}
}

// FastTiming is for tests: milliseconds where nothing on the wire depends on
// it, and room for a busy server where something does.
func FastTiming() Timing {
	const ms = time.Millisecond
	return Timing{
		Retransmit: 250 * ms, RetransmitMax: time.Second, Collect: 20 * ms, Tries: 4,
		DHCPv4: 17 * ms, BootRetry: 20 * ms,
		TFTP: 250 * ms, TFTPTries: 12, HTTP: 30 * time.Second, ScriptSecond: ms,
		Kernel: 5 * ms, ConfigUnit: 10 * ms, ConfigAttempt: 5 * time.Second,
		Backoff: 5 * ms, BackoffMax: 500 * ms,
		Install: 20 * ms, Kexec: 5 * ms,
		API: 5 * ms, CRI: 10 * ms, TimeSync: 5 * ms, Kubelet: 10 * ms, TimeWait: 50 * ms,
		EtcdPull: 50 * ms, EtcdStart: 20 * ms, Poll: 20 * ms,
		Stop: 30 * ms, Reset: 20 * ms,
	}
}

// sleep waits for d, or until ctx ends.
func sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// backoff is the wait between restarts of a Talos controller
// (cenkalti/backoff with its defaults).
type backoff struct {
	next, max time.Duration
}

func (b *backoff) wait(ctx context.Context) error {
	d := time.Duration(float64(b.next) * (0.5 + rand.Float64()))
	b.next = min(b.next*3/2, b.max)
	return sleep(ctx, d)
}
